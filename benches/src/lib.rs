//! What the benches share: a peer and an S3 server to measure, load of many connections, and figures of runs in pairs.
