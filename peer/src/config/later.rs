//! Keys that this version knows but does not act on: those of a cluster, which comes later, and those of the
//! original that have no meaning here.
//!
//! What would have to do something is refused, so that nobody believes in a cluster that is not there; what merely
//! describes is accepted with a warning. Misspelt keys are found in here as everywhere.

use super::report::Report;
use super::section::{Field, Section};
use super::units;
use super::yaml::Value;

const LATER: &str = "comes with a later version: this one runs as a standalone peer";

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

/// Reads all of them.
pub(super) fn read(report: &mut Report, root: &mut Section<'_>) {
    cluster(report, root);
    if let Some(mut section) = root.section(report, "seedPeer") {
        refuse_if_true(report, &mut section, "enable");
        section.done(report);
    }
    manager(report, root);
    for key in ["peer", "gossip"] {
        if let Some(mut section) = root.section(report, key) {
            refuse_if_set(report, &mut section, "listen");
            refuse_if_set(report, &mut section, "port");
            section.done(report);
        }
    }
    if let Some(mut section) = root.section(report, "replicas") {
        refuse_if_set(report, &mut section, "repairAfter");
        section.done(report);
    }
    scheduler(report, root);
    for key in ORIGINAL_PARTS {
        root.without_effect(report, key, "a key of the original for a part that is not here");
    }
    root.without_effect(report, "workHome", "everything is kept in storage.dataPath");
}

fn cluster(report: &mut Report, root: &mut Section<'_>) {
    let Some(mut section) = root.section(report, "cluster") else { return };
    for key in ["name", "token"] {
        if let Some(field) = section.get(report, key) {
            field.secret(report, units::text);
        }
    }
    report.warning(section.place(), format_args!("\"cluster\" has no effect yet: a cluster {LATER}"));
    section.done(report);
}

/// The key at the top level, as the original's manual shows it.
fn manager(report: &mut Report, root: &mut Section<'_>) {
    if let Some(field) = root.get(report, "manager") {
        manager_section(report, &field);
    }
}

/// `scheduler.manager`, as the original's program reads it, and the rest of that section.
fn scheduler(report: &mut Report, root: &mut Section<'_>) {
    let Some(mut section) = root.section(report, "scheduler") else { return };
    if let Some(field) = section.get(report, "manager") {
        manager_section(report, &field);
    }
    for key in ["netAddrs", "scheduleTimeout", "disableAutoBackSource", "discoveryInterval"] {
        section.without_effect(report, key, "there is no scheduler: peers decide themselves");
    }
    section.done(report);
}

fn manager_section(report: &mut Report, field: &Field<'_>) {
    let Some(mut section) = field.section(report) else { return };
    refuse_if_true(report, &mut section, "enable");
    refuse_if_set(report, &mut section, "listen");
    section.value(report, "refreshInterval", units::positive_duration);
    let addresses = section.get(report, "netAddrs");
    if let Some(items) = addresses.as_ref().and_then(|field| field.list(report)) {
        for item in &items {
            address(report, item);
        }
        if let Some(field) = addresses.filter(|_| !items.is_empty()) {
            report
                .problem(&field.node.place, format!("\"{}\": getting the backend from a manager {LATER}", field.path));
        }
    }
    if let Some(mut seed) = section.section(report, "seedPeer") {
        refuse_if_true(report, &mut seed, "enable");
        for key in ["type", "clusterID", "keepAlive"] {
            if let Some(field) = seed.get(report, key) {
                report.warning(&field.node.place, format_args!("\"{}\" has no effect", field.path));
            }
        }
        seed.done(report);
    }
    section.done(report);
}

fn address(report: &mut Report, item: &Field<'_>) {
    let Some(mut section) = item.section(report) else { return };
    section.value(report, "type", |text| match text {
        "tcp" => Ok(()),
        _ => Err("expected tcp".to_owned()),
    });
    section.value(report, "addr", units::text);
    section.done(report);
}

fn refuse_if_true(report: &mut Report, section: &mut Section<'_>, key: &'static str) {
    if let Some(field) = section.get(report, key)
        && field.value(report, units::boolean) == Some(true)
    {
        report.problem(&field.node.place, format!("\"{}: true\" {LATER}", field.path));
    }
}

fn refuse_if_set(report: &mut Report, section: &mut Section<'_>, key: &'static str) {
    if let Some(field) = section.get(report, key)
        && !matches!(&field.node.value, Value::Scalar(text) if text.is_empty())
    {
        report.problem(&field.node.place, format!("\"{}\" {LATER}", field.path));
    }
}
