//! What a disk may hold after the power fails: everything that was synced, and any part of what was not.
//!
//! [`Disk`] follows the log. A write is certain when it was done before a sync of its file began and that sync has ended
//! well; a change of a file's length likewise, and a name by a sync of the folder. Everything else is open: an [`Image`]
//! has any of it, in whole, not at all, or torn at sectors of 512 or 4096 bytes, whatever came before or after it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::rt::disk_log::Event;

/// Up to so many open changes, every subset of them is tried.
const ALL_SUBSETS_MAX: usize = 3;

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }
}

/// A change that is not certain yet, by its place in the log.
struct Change {
    id: u64,
    done: bool,
    what: What,
}

enum What {
    Length(u64),
    Bytes { offset: u64, bytes: Arc<[u8]> },
}

#[derive(Default)]
struct DiskFile {
    /// Whether a sync of the folder has made its name certain.
    named: bool,
    /// What it is called while the name is not certain, if not at all.
    before: Option<String>,
    /// What is certain.
    bytes: Vec<u8>,
    open: Vec<Change>,
}

/// A sync that has not ended.
struct Sync {
    file: String,
    /// Changes that it makes certain: those that were done when it began.
    covers: HashSet<u64>,
}

/// Which syncs the disk forgets, for the canaries: by the file's name and how many syncs of it were before.
pub type Forgets = fn(&str, usize) -> bool;

/// The disk at one moment.
pub struct Disk {
    files: BTreeMap<String, DiskFile>,
    syncs: HashMap<u64, Sync>,
    counts: HashMap<String, usize>,
    forgets: Forgets,
    /// Place of the next event in the log.
    next: u64,
}

/// What becomes of an open change.
#[derive(Clone, Copy)]
pub enum Fate {
    Lost,
    Whole,
    /// Each sector of so many bytes is there or not.
    Torn(usize, u64),
}

/// A file after the power failed.
pub struct ImageFile<'d> {
    certain: &'d [u8],
    pub length: u64,
    written: Vec<(u64, &'d [u8])>,
}

/// The folder after the power failed.
pub type Image<'d> = BTreeMap<&'d str, ImageFile<'d>>;

impl Disk {
    /// An empty folder.
    pub fn new(forgets: Forgets) -> Disk {
        Disk { files: BTreeMap::new(), syncs: HashMap::new(), counts: HashMap::new(), forgets, next: 0 }
    }

    /// The next thing happens.
    pub fn apply(&mut self, event: &Event) {
        let place = self.next;
        self.next += 1;
        match event {
            Event::Created { file } => drop(self.files.insert(file.clone(), DiskFile::default())),
            Event::Renamed { from, to } => {
                let file = self.files.remove(from).expect("it was created");
                assert!(file.open.is_empty(), "it is synced before it gets its name");
                self.files.insert(to.clone(), DiskFile { named: false, before: Some(from.clone()), ..file });
            }
            Event::Resized { file, bytes } => {
                self.file(file).open.push(Change { id: place, done: true, what: What::Length(*bytes) });
            }
            Event::Write { id, file, offset, bytes } => {
                let what = What::Bytes { offset: *offset, bytes: bytes.clone() };
                self.file(file).open.push(Change { id: *id, done: false, what });
            }
            Event::Sync { id, file } => {
                let open = self.files.get(file).into_iter().flat_map(|file| &file.open);
                let covers = open.filter(|change| change.done).map(|change| change.id).collect();
                self.syncs.insert(*id, Sync { file: file.clone(), covers });
            }
            Event::Done { id } => self.done(*id),
            Event::Mark(_) => {}
        }
    }

    fn file(&mut self, name: &str) -> &mut DiskFile {
        self.files.get_mut(name).expect("the log begins before its files")
    }

    fn done(&mut self, number: u64) {
        let Some(sync) = self.syncs.remove(&number) else {
            let mut all = self.files.values_mut().flat_map(|file| &mut file.open);
            if let Some(change) = all.find(|change| change.id == number) {
                change.done = true;
            }
            return;
        };
        let count = self.counts.entry(sync.file.clone()).or_default();
        *count += 1;
        if (self.forgets)(&sync.file, *count - 1) {
            return;
        }
        if sync.file.is_empty() {
            self.files.values_mut().for_each(|file| file.named = true);
            return;
        }
        // What another sync of the file has covered meanwhile is open no more.
        let file = self.files.get_mut(&sync.file).expect("it was synced");
        let is_covered = |change: &mut Change| sync.covers.contains(&change.id);
        let certain: Vec<Change> = file.open.extract_if(.., is_covered).collect();
        certain.into_iter().for_each(|change| file.settle(change));
    }

    /// Number of open changes, names included.
    fn open_count(&self) -> usize {
        self.files.values().map(|file| file.open.len() + usize::from(!file.named)).sum()
    }

    /// What the disk may hold: nothing or everything of what is open, all subsets if it is little, else `random` ones.
    pub fn fates(&self, dice: &mut Dice, random: usize) -> Vec<Vec<Fate>> {
        let count = self.open_count();
        if count == 0 {
            return vec![Vec::new()];
        }
        let whole = |set: u64| (0..count).map(|n| if set >> n & 1 == 1 { Fate::Whole } else { Fate::Lost }).collect();
        let mut fates: Vec<Vec<Fate>> = if count <= ALL_SUBSETS_MAX {
            (0..1 << count).map(whole).collect()
        } else {
            vec![vec![Fate::Lost; count], vec![Fate::Whole; count]]
        };
        for _ in 0..random {
            let sector = if dice.below(2) == 0 { 512 } else { 4096 };
            let fate = |dice: &mut Dice| match dice.below(4) {
                0 => Fate::Lost,
                1 => Fate::Whole,
                _ => Fate::Torn(sector, dice.number()),
            };
            fates.push((0..count).map(|_| fate(dice)).collect());
        }
        fates
    }

    /// The folder with these fates of the open changes.
    pub fn image(&self, fates: &[Fate]) -> Image<'_> {
        let mut fates = fates.iter();
        let mut image = Image::new();
        for (name, file) in &self.files {
            let is_there = file.named || !matches!(fates.next(), Some(Fate::Lost));
            let mut found = ImageFile { certain: &file.bytes, length: file.bytes.len() as u64, written: Vec::new() };
            for (change, fate) in file.open.iter().zip(&mut fates) {
                found.apply(change, *fate);
            }
            if is_there {
                image.insert(name, found);
            } else if let Some(before) = &file.before {
                image.insert(before, found);
            }
        }
        image
    }
}

impl DiskFile {
    fn settle(&mut self, change: Change) {
        match change.what {
            What::Length(length) => self.bytes.resize(usize::try_from(length).expect("small"), 0),
            What::Bytes { offset, bytes } => {
                let start = usize::try_from(offset).expect("small");
                let end = (start + bytes.len()).max(self.bytes.len());
                self.bytes.resize(end, 0);
                self.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }
}

impl<'d> ImageFile<'d> {
    fn apply(&mut self, change: &'d Change, fate: Fate) {
        match (&change.what, fate) {
            (_, Fate::Lost) => {}
            // A length is a number in the file system's journal: never torn.
            (What::Length(length), _) => self.length = *length,
            (What::Bytes { offset, bytes }, Fate::Whole) => self.written.push((*offset, bytes)),
            (What::Bytes { offset, bytes }, Fate::Torn(sector, seed)) => {
                let mut dice = Dice(seed);
                for (number, part) in bytes.chunks(sector).enumerate() {
                    if dice.below(2) == 0 {
                        self.written.push((*offset + (number * sector) as u64, part));
                    }
                }
            }
        }
    }

    /// These bytes of it; zeros behind what was ever written, and nothing behind its end.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        self.lay(offset, &mut out, 0, self.certain);
        for (at, bytes) in &self.written {
            self.lay(offset, &mut out, *at, bytes);
        }
        let there = usize::try_from(self.length.saturating_sub(offset)).expect("small").min(length);
        out[there..].fill(0);
        out
    }

    /// Lays `bytes`, which stand at `at`, over `out`, which begins at `offset`.
    fn lay(&self, offset: u64, out: &mut [u8], at: u64, bytes: &[u8]) {
        let (start, end) = (at.max(offset), (at + bytes.len() as u64).min(offset + out.len() as u64));
        if start < end {
            let index = |place: u64, base: u64| usize::try_from(place - base).expect("small");
            out[index(start, offset)..index(end, offset)].copy_from_slice(&bytes[index(start, at)..index(end, at)]);
        }
    }
}
