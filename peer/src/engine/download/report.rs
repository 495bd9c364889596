//! Reports of a download to the home (TRACK), and finding the home anew when it does not know the version.

use std::rc::Rc;

use dfstore_proto::message::{Message, PieceRuns, Track};

use crate::engine::download::Download;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::version::Version;
use crate::limits::RELOCATE_PAUSE;
use crate::rt::shard::spawn_local;
use crate::rt::time::{since_start, sleep};
use crate::swarm::Report;

impl Owner {
    /// Sends TRACK and hands the answer to the planner.
    pub(super) fn send_report(self: &Rc<Self>, version: &Rc<Version>, download: &Rc<Download>, report: Report) {
        let (owner, version, download) = (self.clone(), version.clone(), download.clone());
        spawn_local(async move {
            let answer = owner.track(&version, report).await;
            match answer {
                Ok(Some(Message::Tracked(tracked))) => download.planner.borrow_mut().tracked(&tracked, since_start()),
                other => {
                    download.planner.borrow_mut().untracked(since_start());
                    // The home is another one now, or was restarted, and does not know the version.
                    if matches!(other, Err(ObjectError::VersionChanged(_))) {
                        owner.relocate(&version, &download).await;
                    }
                }
            }
            download.wake.notify(usize::MAX);
        });
    }

    /// Tells the home that this peer has come to hold all of a version that was too small for a planned download.
    pub fn tell_whole(self: &Rc<Self>, version: &Rc<Version>) {
        if !self.is_away(&version.task) {
            return;
        }
        let (owner, version) = (self.clone(), version.clone());
        spawn_local(async move {
            let have = PieceRuns::new(version.stored_runs());
            let report = Report { have, ..Report::default() };
            // Only others would miss it: they ask the home for the bytes.
            drop(owner.track(&version, report).await);
        });
    }

    async fn track(&self, version: &Version, report: Report) -> Result<Option<Message>, ObjectError> {
        let (Some(cluster), Some(task)) = (&self.cluster, self.known(&version.task)) else { return Ok(None) };
        let node = cluster.me().to_string();
        let make = || Track {
            task: version.task,
            generation: version.generation,
            node: node.clone(),
            have: report.have.clone(),
            fetching: report.fetching.clone(),
            uploads: report.uploads,
            window: report.window,
        };
        self.ask_homes(&task, make).await
    }

    /// Makes the version known to a home that does not know it, by asking for the current one. True when it is this.
    pub(super) async fn relocate(self: &Rc<Self>, version: &Rc<Version>, download: &Download) -> bool {
        let Some(task) = self.known(&version.task).filter(|_| self.is_away(&version.task)) else { return false };
        let now = since_start();
        if now < download.relocated_at.get() + RELOCATE_PAUSE {
            sleep(RELOCATE_PAUSE).await;
            return task.is_current(version);
        }
        download.relocated_at.set(now);
        self.ask_home(&task, false).await.is_ok() && task.is_current(version)
    }
}
