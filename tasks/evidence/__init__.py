"""Evidence: what a run leaves behind for people. Values in, strings out."""

from tasks.evidence.alarms import to_picture
from tasks.evidence.page import headline, render_page, render_validation
from tasks.evidence.story import Chapter, Picture, Samples, Story
from tasks.evidence.summary import render_markdown, render_summary

__all__ = [
    "Chapter",
    "Picture",
    "Samples",
    "Story",
    "headline",
    "render_markdown",
    "render_page",
    "render_summary",
    "render_validation",
    "to_picture",
]
