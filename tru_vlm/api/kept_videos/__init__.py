"""Videos that the server keeps: uploads, ranges of a file, answers.  The files are ``tru_vlm.library``."""
