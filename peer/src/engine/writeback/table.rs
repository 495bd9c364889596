//! What is done next about one entry of the queue: a decision table. Pure.
//!
//! A [`Situation`] says what is known: whether the entry's version is still the newest here, whether its pieces are on
//! disk, whether an upload of it is in progress, and what the backend has or has answered. Each situation fits exactly
//! one row of [`TABLE`], which names the next [`Step`] and why; a test goes through all of them. The driver beside it
//! carries the step out, looks again, and asks again, until a step ends the attempt.
//!
//! The life of an entry in these words: *queued* (not here yet), *uploading* (`Send`, `Resume`), *verifying*
//! (`Verify`), *clean* (`Settle`), *superseded* and *cancelled by a delete* (`Leave`, `GiveWay`), *dead letter*
//! (`SetAside`).

/// Where the version of the entry stands in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the newest, and the backend is to get it.
    Dirty,
    /// It is the newest: a deletion that the backend is to hear of.
    Tombstone,
    /// A newer version has taken its place.
    Superseded,
    /// A deletion has taken its place.
    Cancelled,
    /// Nothing is known of the object any more: it was dropped.
    Gone,
}

/// Its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// All are on this peer's disk.
    Whole,
    /// Some are missing, or were found damaged.
    Lacking,
}

/// Its multipart upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InProgress {
    /// There is none.
    Nothing,
    /// One was started and not completed.
    Upload,
}

/// What the backend has, or has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// It must be asked first: an earlier attempt may have got through, somebody may have written something newer, or
    /// the bucket is not to be overwritten blindly.
    Unasked,
    /// Nothing, an older version, or something that may be replaced.
    Replaceable,
    /// Exactly this version: an answer was lost.
    Same,
    /// A newer version of ours.
    Newer,
    /// What others have written since; the bucket's policy is to keep theirs and to set ours aside.
    Conflict,
    /// What others have written since; the bucket's policy is to keep both.
    ConflictToKeep,
    /// It has taken the bytes, or the deletion.
    Taken,
    /// It has taken the bytes under another key, beside what others wrote.
    TakenBeside,
    /// It changed between the look and the write: a condition of the write did not hold.
    Changed,
    /// It cannot do it now (network, 5xx, clock skew).
    Failing,
    /// It asks for fewer requests.
    Overloaded,
    /// It will never do it (no such bucket, access denied, an invalid key).
    Refusing,
}

/// What is known when the next step is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// Where the version stands.
    pub standing: Standing,
    /// Its pieces.
    pub pieces: Pieces,
    /// Its upload.
    pub in_progress: InProgress,
    /// The backend.
    pub backend: Backend,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the backend what it has.
    Look,
    /// Get the missing pieces from other peers.
    Collect,
    /// Send it from the beginning.
    Send,
    /// Go on with the upload in progress.
    Resume,
    /// Send it under another key, beside what others wrote.
    SendBeside,
    /// Compare what the backend has now with what was sent.
    Verify,
    /// Delete the object.
    Delete,
    /// Ends: the backend has it.
    Settle,
    /// Ends: the backend's version counts, this one is forgotten here.
    GiveWay,
    /// Ends: the deletion is done, or has nothing left to delete; the tombstone goes.
    Forget,
    /// Ends: nothing is left to do for this entry. An upload of it serves nobody and is aborted.
    Leave,
    /// Ends: tried again after a pause.
    TryLater,
    /// Ends: tried again after a pause, and everything else more slowly.
    SlowDown,
    /// Ends: a dead letter.
    SetAside,
}

impl Step {
    /// Whether the attempt is over with it.
    pub fn is_end(self) -> bool {
        use Step as S;
        matches!(self, S::Settle | S::GiveWay | S::Forget | S::Leave | S::TryLater | S::SlowDown | S::SetAside)
    }
}

/// A row: what it applies to (an empty list is anything), the step, and why.
struct Row {
    standing: &'static [Standing],
    pieces: &'static [Pieces],
    in_progress: &'static [InProgress],
    backend: &'static [Backend],
    step: Step,
    why: &'static str,
}

/// A row that applies whatever the backend, the pieces and the upload are.
const ANY: Row = Row { standing: &[], pieces: &[], in_progress: &[], backend: &[], step: Step::Leave, why: "" };

const NEWEST: &[Standing] = &[Standing::Dirty, Standing::Tombstone];
const DIRTY: &[Standing] = &[Standing::Dirty];
const TOMBSTONE: &[Standing] = &[Standing::Tombstone];
const WHOLE: &[Pieces] = &[Pieces::Whole];
const LACKING: &[Pieces] = &[Pieces::Lacking];

/// All rows; exactly one fits each situation.
static TABLE: &[Row] = &[
    Row {
        standing: &[Standing::Superseded, Standing::Cancelled, Standing::Gone],
        why: "an older version never overwrites a newer one, and what was deleted or dropped does not come back",
        ..ANY
    },
    Row {
        standing: NEWEST,
        backend: &[Backend::Unasked, Backend::Changed],
        step: Step::Look,
        why: "what the backend has decides, and is not known",
        ..ANY
    },
    Row {
        standing: DIRTY,
        pieces: WHOLE,
        in_progress: &[InProgress::Nothing],
        backend: &[Backend::Replaceable],
        step: Step::Send,
        why: "it is new to the backend",
    },
    Row {
        standing: DIRTY,
        pieces: WHOLE,
        in_progress: &[InProgress::Upload],
        backend: &[Backend::Replaceable],
        step: Step::Resume,
        why: "parts that the backend has need not be sent again",
    },
    Row {
        standing: DIRTY,
        pieces: WHOLE,
        backend: &[Backend::ConflictToKeep],
        step: Step::SendBeside,
        why: "the bucket's policy is to lose neither",
        ..ANY
    },
    Row {
        standing: DIRTY,
        pieces: LACKING,
        backend: &[Backend::Replaceable, Backend::ConflictToKeep],
        step: Step::Collect,
        why: "only a whole version is sent",
        ..ANY
    },
    Row {
        standing: DIRTY,
        backend: &[Backend::Taken],
        step: Step::Verify,
        why: "it is clean only when the backend shows it",
        ..ANY
    },
    Row {
        standing: DIRTY,
        backend: &[Backend::Same],
        step: Step::Settle,
        why: "the backend has it, whoever sent it",
        ..ANY
    },
    Row {
        standing: DIRTY,
        backend: &[Backend::Newer],
        step: Step::GiveWay,
        why: "who wrote the newer one knew of this one",
        ..ANY
    },
    Row {
        standing: DIRTY,
        backend: &[Backend::TakenBeside],
        step: Step::GiveWay,
        why: "it is kept under its other key; under this one theirs counts",
        ..ANY
    },
    Row {
        standing: TOMBSTONE,
        backend: &[Backend::Replaceable],
        step: Step::Delete,
        why: "the backend has not heard of the deletion",
        ..ANY
    },
    Row {
        standing: TOMBSTONE,
        backend: &[Backend::Taken, Backend::Same, Backend::TakenBeside],
        step: Step::Forget,
        why: "the object is gone",
        ..ANY
    },
    Row {
        standing: TOMBSTONE,
        backend: &[Backend::Newer],
        step: Step::Forget,
        why: "what was deleted is replaced already",
        ..ANY
    },
    Row {
        standing: TOMBSTONE,
        backend: &[Backend::ConflictToKeep],
        step: Step::Forget,
        why: "the bucket's policy is to lose nothing: what others wrote after the deletion stays",
        ..ANY
    },
    Row {
        standing: NEWEST,
        backend: &[Backend::Conflict],
        step: Step::SetAside,
        why: "the bucket's policy leaves it to a person",
        ..ANY
    },
    Row { standing: NEWEST, backend: &[Backend::Failing], step: Step::TryLater, why: "this heals by itself", ..ANY },
    Row {
        standing: NEWEST,
        backend: &[Backend::Overloaded],
        step: Step::SlowDown,
        why: "this heals when the backend is asked for less",
        ..ANY
    },
    Row {
        standing: NEWEST,
        backend: &[Backend::Refusing],
        step: Step::SetAside,
        why: "waiting does not heal this",
        ..ANY
    },
];

impl Row {
    fn fits(&self, situation: &Situation) -> bool {
        (self.standing.is_empty() || self.standing.contains(&situation.standing))
            && (self.pieces.is_empty() || self.pieces.contains(&situation.pieces))
            && (self.in_progress.is_empty() || self.in_progress.contains(&situation.in_progress))
            && (self.backend.is_empty() || self.backend.contains(&situation.backend))
    }
}

/// The next step, and why.
pub fn decide(situation: &Situation) -> (Step, &'static str) {
    let row = TABLE.iter().find(|row| row.fits(situation)).expect("the table is complete: a test goes through all");
    (row.step, row.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDINGS: [Standing; 5] =
        [Standing::Dirty, Standing::Tombstone, Standing::Superseded, Standing::Cancelled, Standing::Gone];
    const PIECES: [Pieces; 2] = [Pieces::Whole, Pieces::Lacking];
    const IN_PROGRESS: [InProgress; 2] = [InProgress::Nothing, InProgress::Upload];
    const BACKENDS: [Backend; 12] = [
        Backend::Unasked,
        Backend::Replaceable,
        Backend::Same,
        Backend::Newer,
        Backend::Conflict,
        Backend::ConflictToKeep,
        Backend::Taken,
        Backend::TakenBeside,
        Backend::Changed,
        Backend::Failing,
        Backend::Overloaded,
        Backend::Refusing,
    ];

    /// Fails to compile when a value is added and not listed above.
    const fn listed(standing: Standing, pieces: Pieces, in_progress: InProgress, backend: Backend) {
        match standing {
            Standing::Dirty | Standing::Tombstone | Standing::Superseded | Standing::Cancelled | Standing::Gone => {}
        }
        match pieces {
            Pieces::Whole | Pieces::Lacking => {}
        }
        match in_progress {
            InProgress::Nothing | InProgress::Upload => {}
        }
        match backend {
            Backend::Unasked | Backend::Replaceable | Backend::Same | Backend::Newer | Backend::Conflict => {}
            Backend::ConflictToKeep | Backend::Taken | Backend::TakenBeside | Backend::Changed => {}
            Backend::Failing | Backend::Overloaded | Backend::Refusing => {}
        }
    }

    fn all() -> impl Iterator<Item = Situation> {
        STANDINGS.into_iter().flat_map(|standing| {
            PIECES.into_iter().flat_map(move |pieces| {
                IN_PROGRESS.into_iter().flat_map(move |in_progress| {
                    BACKENDS.into_iter().map(move |backend| {
                        listed(standing, pieces, in_progress, backend);
                        Situation { standing, pieces, in_progress, backend }
                    })
                })
            })
        })
    }

    #[test]
    fn exactly_one_row_fits_each_situation() {
        assert_eq!(all().count(), 5 * 2 * 2 * 12);
        for situation in all() {
            let rows: Vec<_> = TABLE.iter().filter(|row| row.fits(&situation)).map(|row| row.why).collect();
            assert_eq!(rows.len(), 1, "{situation:?}: {rows:?}");
        }
        for row in TABLE {
            assert!(!row.why.is_empty() && all().any(|situation| row.fits(&situation)), "{} is of use", row.why);
        }
    }

    #[test]
    fn nothing_is_written_for_a_version_that_is_not_the_newest() {
        for situation in all().filter(|situation| !NEWEST.contains(&situation.standing)) {
            assert_eq!(decide(&situation).0, Step::Leave, "{situation:?}");
        }
    }

    #[test]
    fn bytes_are_sent_only_of_a_whole_dirty_version_after_a_look() {
        for situation in all() {
            let (step, why) = decide(&situation);
            if matches!(step, Step::Send | Step::Resume | Step::SendBeside) {
                assert_eq!((situation.standing, situation.pieces), (Standing::Dirty, Pieces::Whole), "{why}");
                assert_ne!(situation.backend, Backend::Unasked, "{why}");
            }
            if step == Step::Delete {
                assert_eq!(situation.standing, Standing::Tombstone, "{why}");
            }
        }
    }

    #[test]
    fn a_dirty_version_is_let_go_only_when_the_backend_has_it_or_a_newer_one() {
        for situation in all().filter(|situation| situation.standing == Standing::Dirty) {
            let (step, why) = decide(&situation);
            let is_let_go = matches!(step, Step::Settle | Step::GiveWay | Step::Forget | Step::Leave);
            let is_kept_there = matches!(situation.backend, Backend::Same | Backend::Newer | Backend::TakenBeside);
            assert_eq!(is_let_go, is_kept_there, "{situation:?}: {why}");
        }
    }

    /// Whatever the backend answers, an attempt ends: no circle of steps without an outside event.
    #[test]
    fn each_step_leads_on() {
        for situation in all() {
            let (step, why) = decide(&situation);
            let next: &[Backend] = match step {
                Step::Look => &[Backend::Replaceable, Backend::Same, Backend::Newer, Backend::Conflict],
                Step::Send | Step::Resume | Step::Delete => &[Backend::Taken, Backend::Failing, Backend::Refusing],
                Step::SendBeside => &[Backend::TakenBeside, Backend::Failing],
                Step::Verify => &[Backend::Same, Backend::Failing],
                _ => &[],
            };
            for backend in next {
                let (then, _) = decide(&Situation { backend: *backend, ..situation });
                assert!(then != step, "{situation:?}: {why}, and again");
            }
            assert!(step.is_end() || step == Step::Collect || !next.is_empty(), "{situation:?}");
        }
    }
}
