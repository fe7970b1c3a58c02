"""A labelled data set out of nothing."""

from ssd_tf.synthesis.writer import synthesize

__all__ = ["synthesize"]
