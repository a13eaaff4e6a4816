"""Jobs as clients start and read them: bodies, answers, the work.  What is stored of them is ``tru_vlm.jobs``."""
