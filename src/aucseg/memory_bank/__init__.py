"""The tail-class memory bank; needs torch alone."""

from aucseg.memory_bank.bank import TailMemoryBank

__all__ = ["TailMemoryBank"]
