"""Measures a target under MLPerf rules: scenarios, workloads, metrics, validity, quality, cost, report."""
