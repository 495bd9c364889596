//! Section `manager` (also as `scheduler.manager`): who is asked for the backend's configuration, and who gives it.

use std::net::SocketAddr;
use std::time::Duration;

use super::report::{Report, join};
use super::section::{Field, Section};
use super::units;
use super::yaml::Place;
use crate::limits::MANAGERS_MAX;

/// A key that asks for something, for messages.
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) place: Place,
}

impl Asked {
    fn of(field: &Field<'_>) -> Asked {
        Asked { path: field.path.clone(), place: field.node.place.clone() }
    }
}

/// What the section gives; empty when there is none.
#[derive(Default)]
pub(super) struct ManagerKeys {
    /// Address of the manager's listener, and the key.
    pub(super) listen: Option<(SocketAddr, Asked)>,
    /// `enable: true`.
    pub(super) enabled: Option<Asked>,
    /// Managers to ask, of `netAddrs`. Empty without `enable`.
    pub(super) managers: Vec<String>,
    pub(super) refresh_interval: Option<Duration>,
    /// `seedPeer.enable: true`, the original's place for it.
    pub(super) seed: Option<Asked>,
}

/// Reads the section from wherever it is.
pub(super) fn read(report: &mut Report, manual: Option<Field<'_>>, program: Option<Field<'_>>) -> ManagerKeys {
    if let (Some(first), Some(second)) = (&manual, &program) {
        let message = format!("\"{}\" and \"{}\" are one section: keep one of them", second.path, first.path);
        report.problem(&second.node.place, message);
    }
    let Some(mut section) = manual.or(program).and_then(|field| field.section(report)) else {
        return ManagerKeys::default();
    };
    let enabled = if_true(report, &mut section, "enable");
    let addresses = section.get(report, "netAddrs");
    let listed = addresses.as_ref().map(|field| addresses_of(report, field)).unwrap_or_default();
    if let (None, Some(field)) = (&enabled, addresses.as_ref().filter(|_| !listed.is_empty())) {
        let message = format_args!("\"{}\" has no effect without \"enable: true\" beside it", field.path);
        report.warning(&field.node.place, message);
    }
    if let (Some(enabled), true) = (&enabled, listed.is_empty() && addresses.is_none_or(|field| is_empty_list(&field)))
    {
        let parent = enabled.path.trim_end_matches(".enable");
        let message = format!(
            "\"{}\" is required with \"{}: true\": the managers to ask, such as [{{ type: tcp, addr: HOST:65003 }}]",
            join(parent, "netAddrs"),
            enabled.path
        );
        report.problem(&enabled.place, message);
    }
    let listen = section.get(report, "listen");
    let listen = listen.and_then(|field| Some((field.value(report, units::address)?, Asked::of(&field))));
    let refresh_interval = section.value(report, "refreshInterval", units::positive_duration);
    let seed = seed_peer(report, &mut section);
    section.done(report);
    let managers = if enabled.is_some() { listed } else { Vec::new() };
    ManagerKeys { listen, enabled, managers, refresh_interval, seed }
}

/// The key, if its value is true.
pub(super) fn if_true(report: &mut Report, section: &mut Section<'_>, key: &'static str) -> Option<Asked> {
    let field = section.get(report, key)?;
    (field.value(report, units::boolean) == Some(true)).then(|| Asked::of(&field))
}

fn is_empty_list(field: &Field<'_>) -> bool {
    matches!(&field.node.value, super::yaml::Value::List(items) if items.is_empty())
}

fn addresses_of(report: &mut Report, field: &Field<'_>) -> Vec<String> {
    let items = field.list(report).unwrap_or_default();
    if items.len() > MANAGERS_MAX {
        report.problem(&field.node.place, format!("\"{}\": more than {MANAGERS_MAX} managers", field.path));
    }
    items.iter().filter_map(|item| address(report, item)).collect()
}

fn address(report: &mut Report, item: &Field<'_>) -> Option<String> {
    let mut section = item.section(report)?;
    section.value(report, "type", |text| match text {
        "tcp" => Ok(()),
        _ => Err("expected tcp".to_owned()),
    });
    let field = section.get(report, "addr");
    if field.is_none() {
        report.problem(section.place(), format!("\"{}\" is required", join(&item.path, "addr")));
    }
    section.done(report);
    field?.value(report, units::host_port)
}

fn seed_peer(report: &mut Report, section: &mut Section<'_>) -> Option<Asked> {
    let mut seed = section.section(report, "seedPeer")?;
    let enabled = if_true(report, &mut seed, "enable");
    for key in ["type", "clusterID", "keepAlive"] {
        seed.without_effect(report, key, "a seed is a seed, and all nodes with one cluster.name are one cluster");
    }
    seed.done(report);
    enabled
}
