//! Keys of the original's files that have no meaning here: accepted, each with a warning. Misspelt keys are found as
//! everywhere.

use super::report::Report;
use super::section::{Field, Section};

/// Top-level keys of the original's daemon and manager files that configure parts which do not exist here.
const ORIGINAL_PARTS: [&str; 26] = [
    "aliveTime",
    "announcer",
    "auth",
    "cache",
    "cacheDir",
    "console",
    "dataDir",
    "database",
    "download",
    "gcInterval",
    "health",
    "host",
    "jaeger",
    "job",
    "keepStorage",
    "logDir",
    "network",
    "networkTopology",
    "pluginDir",
    "pprof-port",
    "proxy",
    "reload",
    "security",
    "server",
    "upload",
    "verbose",
];

/// Reads all of them. Gives `scheduler.manager`, which does have a meaning.
pub(super) fn read<'a>(report: &mut Report, root: &mut Section<'a>) -> Option<Field<'a>> {
    for key in ORIGINAL_PARTS {
        root.without_effect(report, key, "a key of the original for a part that is not here");
    }
    root.without_effect(report, "workHome", "everything is kept in storage.dataPath");
    let mut scheduler = root.section(report, "scheduler")?;
    let manager = scheduler.get(report, "manager");
    for key in ["netAddrs", "scheduleTimeout", "disableAutoBackSource", "discoveryInterval"] {
        scheduler.without_effect(report, key, "there is no scheduler: peers decide themselves");
    }
    scheduler.done(report);
    manager
}
