"""oracle_leak: whether the subject is in a picture that does not ask for it (mini world only).

Definition: oracle_subject's reading of ordinary prompts, those without the trigger word.
Range: 0 or 1; its mean is the share of ordinary pictures into which the subject leaked. Lower is better, 0 is best.
Source: the mini world's own oracle (captune.mini.oracle).
"""

from __future__ import annotations

from captune.metrics.oracle_subject import OracleSubject


class OracleLeak(OracleSubject):
    """1 where the oracle sees the subject though nobody asked for it, else 0."""

    name = "oracle_leak"
    title = "Subject leaked"
    meaning = "Share of the ordinary pictures in which the oracle sees the subject unasked; lower is better."
    higher_is_better = False
    judges = "ordinary"
    ceiling = False
