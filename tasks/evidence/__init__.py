"""Evidence: what a run leaves behind for people. Values in, strings out."""

from tasks.evidence.page import headline, render_page, render_validation
from tasks.evidence.story import Chapter, Picture, Story
from tasks.evidence.summary import render_markdown, render_summary

__all__ = [
    "Chapter",
    "Picture",
    "Story",
    "headline",
    "render_markdown",
    "render_page",
    "render_summary",
    "render_validation",
]
