"""Posture: what is known of a registered model over its versions. Values in, values and strings out, without torch."""

from tasks.posture.record import Record, ThreatRecord, key_of

__all__ = ["Record", "ThreatRecord", "key_of"]
