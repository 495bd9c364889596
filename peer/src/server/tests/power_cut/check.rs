//! Opens what a power cut left, as a start does, and compares it with what was acknowledged.
//!
//! The catalog is opened by the code of the product from an image in memory. The piece files are opened by it too, from
//! files that have the image's lengths and headers; the bytes of pieces are read from the image and verified by the
//! store's own check.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::disk::{Image, ImageFile};
use super::script::{Act, CAPACITY, target};
use crate::catalog::journal::JOURNAL_FILE;
use crate::catalog::{CATALOG_FILE, Loaded, TaskState, open_image};
use crate::engine::{Inventory, TaskInventory};
use crate::store::{ExtentList, PieceFiles, SpaceOptions, StoreSeed, verify};

/// Bytes of a header's block.
const HEADER_BLOCK: usize = 4096;

/// The acts so far: what each key may hold, and what the bucket holds.
#[derive(Default)]
pub struct Expected {
    /// The last act with each key that was acknowledged, and those that were begun since.
    keys: BTreeMap<String, (Option<Act>, Vec<Act>)>,
    bucket: HashMap<String, u32>,
}

impl Expected {
    /// The bucket has this from the beginning.
    pub fn place(&mut self, key: &str, act: &Act) {
        self.keys.insert(key.to_owned(), (Some(act.clone()), Vec::new()));
        self.bucket_has(key, act.content().flatten().map(|(_, crc32)| crc32));
    }

    pub fn begun(&mut self, act: &Act) {
        if act.content().is_some() {
            self.keys.entry(act.key.clone()).or_default().1.push(act.clone());
        }
    }

    pub fn acknowledged(&mut self, act: &Act) {
        if act.content().is_some() {
            self.keys.insert(act.key.clone(), (Some(act.clone()), Vec::new()));
        }
    }

    pub fn bucket_has(&mut self, key: &str, crc32: Option<u32>) {
        match crc32 {
            Some(crc32) => drop(self.bucket.insert(key.to_owned(), crc32)),
            None => drop(self.bucket.remove(key)),
        }
    }
}

/// What was found in the images, so that a test can say that it has seen something.
#[derive(Debug, Default)]
pub struct Seen {
    pub images: u64,
    pub whole: u64,
    pub deleted: u64,
    pub clean_lost: u64,
    /// Images in which a write that was cut off is there.
    pub cut_off_there: u64,
}

/// A place to open images at.
pub struct Checker {
    folder: TempDir,
    laid: BTreeMap<String, (u64, Vec<u8>)>,
    pub seen: Seen,
}

impl Checker {
    pub fn new(parent: &Path) -> Checker {
        let folder = tempfile::tempdir_in(parent).expect("target can be written");
        Checker { folder, laid: BTreeMap::new(), seen: Seen::default() }
    }

    /// What is wrong with an image, if anything is.
    pub fn check(&mut self, image: &Image<'_>, expected: &Expected) -> Result<(), String> {
        self.seen.images += 1;
        let mut written = WrittenAgain::default();
        let loaded = open_catalog(image, &mut written)?;
        if loaded.damaged > 0 {
            return Err(format!("{} records of the catalog are damaged", loaded.damaged));
        }
        no_block_twice(&loaded)?;
        self.lay_out(image).map_err(|error| format!("the image cannot be laid out: {error}"))?;
        let seed = self.open_store(&loaded)?;
        let inventory = Inventory::new(loaded, &seed, 1);
        let tasks: HashMap<_, _> = inventory.shards[0].tasks.iter().map(|found| (found.task, found)).collect();
        for (key, (certain, begun)) in &expected.keys {
            let found = tasks.get(&target(key).task).copied();
            let content = |act: &Act| act.content().flatten().map(|(bytes, crc32)| (bytes.to_vec(), crc32));
            let allowed: Vec<_> = begun.iter().map(content).chain([certain.as_ref().and_then(content)]).collect();
            let is_certain = self
                .check_key(&Pieces { image, written: &written }, found, &allowed, expected.bucket.get(key).copied())
                .map_err(|problem| format!("{key}: {problem}; acknowledged: {certain:?}; begun: {begun:?}"))?;
            self.seen.cut_off_there += u64::from(!is_certain);
        }
        Ok(())
    }

    /// Gives whether it is what was acknowledged, not a write that was cut off.
    fn check_key(
        &mut self,
        pieces: &Pieces<'_>,
        found: Option<&TaskInventory>,
        allowed: &[Option<(Vec<u8>, u32)>],
        in_bucket: Option<u32>,
    ) -> Result<bool, String> {
        let in_bucket_allowed = allowed.iter().any(|content| content.as_ref().map(|(_, crc32)| *crc32) == in_bucket);
        let Some(found) = found else {
            return if in_bucket_allowed { Ok(true) } else { Err(format!("forgotten; the bucket has {in_bucket:?}")) };
        };
        if found.record.state == TaskState::Deleted {
            self.seen.deleted += 1;
            return allowed.iter().position(Option::is_none).map(|n| n + 1 == allowed.len()).ok_or("deleted".into());
        }
        let length = usize::try_from(found.record.meta.length).expect("small");
        let is_it = |content: &Option<(Vec<u8>, u32)>| {
            content.as_ref().is_some_and(|(bytes, crc32)| {
                bytes.len() == length && found.record.crc32.is_none_or(|recorded| recorded == *crc32)
            })
        };
        let position = allowed.iter().position(is_it);
        let position = position.ok_or_else(|| format!("a version of {length} bytes that nobody wrote"))?;
        let (bytes, _) = allowed[position].as_ref().expect("it has bytes");
        let missing = missing_pieces(pieces, found, bytes)?;
        let is_clean = found.record.state == TaskState::Clean;
        if is_clean && !in_bucket_allowed {
            return Err(format!("clean, and the bucket has {in_bucket:?}"));
        }
        if missing > 0 && !is_clean {
            return Err(format!("{missing} pieces of {:?} are lost", found.record.state));
        }
        self.seen.clean_lost += u64::from(missing > 0);
        self.seen.whole += u64::from(missing == 0);
        Ok(position + 1 == allowed.len())
    }

    /// Gives the folder piece files with the image's lengths and headers.
    fn lay_out(&mut self, image: &Image<'_>) -> io::Result<()> {
        let wanted: BTreeMap<String, (u64, Vec<u8>)> = image
            .iter()
            .filter(|(name, _)| name.starts_with("pieces-"))
            .map(|(name, file)| ((*name).to_owned(), (file.length, file.read(0, HEADER_BLOCK))))
            .collect();
        let path = |name: &String| self.folder.path().join(name);
        for gone in self.laid.keys().filter(|name| !wanted.contains_key(*name)) {
            fs::remove_file(path(gone)).or_else(missing_is_fine)?;
        }
        for (name, (length, header)) in &wanted {
            // A start removes a file that was never finished.
            if self.laid.get(name) != Some(&(*length, header.clone())) || !path(name).exists() {
                let file = File::create(path(name))?;
                file.write_all_at(header, 0)?;
                file.set_len(*length)?;
            }
        }
        self.laid = wanted;
        Ok(())
    }

    fn open_store(&self, loaded: &Loaded) -> Result<StoreSeed, String> {
        let named =
            loaded.pieces.iter().flat_map(|(_, piece)| piece.extents.iter().map(|extent| extent.file)).collect();
        let dir: PathBuf = self.folder.path().to_path_buf();
        let options = SpaceOptions { dir, capacity_bytes: CAPACITY, shards: 1, store_id: loaded.store_id };
        StoreSeed::open(options, &named).map_err(|error| format!("the store does not open: {error}"))
    }
}

fn missing_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Pieces that a start wrote again from the journal, over those of the image.
#[derive(Default)]
struct WrittenAgain(Vec<(ExtentList, Vec<u8>)>);

impl PieceFiles for WrittenAgain {
    fn write(&mut self, extents: &ExtentList, bytes: &[u8]) -> io::Result<()> {
        self.0.push((extents.clone(), bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of pieces after a start.
struct Pieces<'i> {
    image: &'i Image<'i>,
    written: &'i WrittenAgain,
}

fn open_catalog(image: &Image<'_>, written: &mut WrittenAgain) -> Result<Loaded, String> {
    let length = |file: &ImageFile<'_>| usize::try_from(file.length).expect("small");
    let bytes = |name: &str| image.get(name).map_or_else(Vec::new, |file| file.read(0, length(file)));
    open_image(bytes(CATALOG_FILE), &bytes(JOURNAL_FILE), written).map_err(|error| error.to_string())
}

/// No two records name the same block, whatever they belong to.
fn no_block_twice(loaded: &Loaded) -> Result<(), String> {
    let mut taken = HashSet::new();
    for (key, record) in &loaded.pieces {
        for extent in record.extents.iter() {
            for block in extent.block..extent.block + extent.count {
                if !taken.insert((extent.file, block)) {
                    return Err(format!("block {block} of file {} is named twice, also by {key:?}", extent.file));
                }
            }
        }
    }
    Ok(())
}

/// How many pieces of a version are lost; an error if one passes for good and is not.
fn missing_pieces(pieces: &Pieces<'_>, found: &TaskInventory, bytes: &[u8]) -> Result<usize, String> {
    let piece_bytes = found.record.piece_bytes as usize;
    let mut whole = 0;
    for (number, record, _) in &found.pieces {
        let start = *number as usize * piece_bytes;
        let wanted = bytes.get(start..start + record.length as usize).ok_or("a piece behind the end")?;
        let read = pieces.read(&record.extents, record.length as usize);
        if verify(&record.extents, &read, record.crc32).is_ok() {
            if read != wanted {
                return Err(format!("piece {number} has wrong bytes"));
            }
            whole += 1;
        }
    }
    Ok(bytes.len().div_ceil(piece_bytes) - whole)
}

impl Pieces<'_> {
    fn read(&self, extents: &ExtentList, length: usize) -> Vec<u8> {
        if let Some((_, bytes)) = self.written.0.iter().rev().find(|(written, _)| written == extents) {
            return bytes[..length.min(bytes.len())].to_vec();
        }
        let mut read = Vec::new();
        for extent in extents.iter() {
            let name = format!("pieces-{:06}.dat", extent.file);
            match self.image.get(&*name) {
                Some(file) => read.extend(file.read(extent.offset_bytes(), extent.length_bytes())),
                None => read.resize(read.len() + extent.length_bytes(), 0),
            }
        }
        read.truncate(length);
        read
    }
}
