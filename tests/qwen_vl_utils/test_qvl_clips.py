"""Making clips leaves the process as it was."""

import os

import pytest
from qvl_clips import Clip, write_clip


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling policies")
def test_encoding_av1_leaves_the_process_among_the_others(tmp_path):
    write_clip(tmp_path, Clip("av1.mp4", codec="libsvtav1", bframes=0, num_frames=5))
    assert os.sched_getscheduler(os.getpid()) == os.SCHED_OTHER
