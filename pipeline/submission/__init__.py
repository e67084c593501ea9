"""Files that benchmarks take: the BRAVO challenge's archive and other servers' formats."""
