//! Counters, gauges and histograms of the process.
