"""Evidence: what a run leaves behind for people. Values in, strings out."""

from tasks.evidence.story import Chapter, Picture, Story

__all__ = ["Chapter", "Picture", "Story"]
