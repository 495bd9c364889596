//! `dfstore cp`: copies a file to an object, an object to a file, or an object to an object; `-` is a stream.
//!
//! Says one line when done, as the Go command does, on standard output, or on standard error when the bytes went to
//! standard output. Errors name both ends.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use dfstore_proto::message::{Copy, Message, PutBegin, Target, VersionInfo, WrittenTo};
use dfstore_proto::object::{ObjectMeta, WriteMode};

use crate::args::{Ack, CpArgs, Wait};
use crate::client::Peer;
use crate::commands::{note, note_query, print_line, writeback};
use crate::error::{usage, with_hint};
use crate::progress::Progress;
use crate::rt::block_on;
use crate::rt::signal::Unfinished;
use crate::transfer::download::{self, Output};
use crate::transfer::upload::{self, Source};
use crate::transfer::{Context, Moved, target};
use crate::url::{Basename, DfsUrl, Endpoint, Location};

/// Copies.
pub fn run(endpoint: &Endpoint, args: &CpArgs, unfinished: &Unfinished) -> Result<()> {
    let source = Location::parse(&args.source).map_err(usage)?;
    let target = Location::parse(&args.target).map_err(usage)?;
    for (text, location) in [(&args.source, &source), (&args.target, &target)] {
        if let Location::Dfs(url) = location {
            note_query(&text.to_string_lossy(), url);
        }
    }
    let plan = Plan::of(args, &source, &target)?;
    let peer = Peer::find(endpoint)?;
    // Bytes on the terminal and a bar on the terminal do not go together.
    let to_terminal = target == Location::Standard && std::io::stdout().is_terminal();
    let progress = !args.no_progress && !args.quiet && !to_terminal;
    let context = Context { peer: &peer, parallel: args.parallel.into(), progress, unfinished };
    let started = Instant::now();
    let failed = || format!("failed to copy {} to {}", args.source.display(), args.target.display());
    let moved = plan.run(&context, args).with_context(failed)?;
    // Whoever waits for copies wants to know how many there are.
    if args.verbose || (args.ack != Ack::Local && !args.quiet) {
        explain(&moved);
    }
    check_copies(args, &moved).with_context(failed)?;
    if args.wait == Wait::Backend {
        plan.wait_for_backend(&context, &moved).with_context(failed)?;
    }
    if args.quiet {
        return Ok(());
    }
    let cost_ms = started.elapsed().as_millis();
    let line = format!("{} object storage success, length: {} bytes cost: {cost_ms} ms", plan.verb(), moved.length);
    match target {
        Location::Standard => note(line),
        _ => print_line(line)?,
    }
    Ok(())
}

/// One line that programs can read: `sources: local=BYTES backend=BYTES`, or `written: local replicas=1`.
fn explain(moved: &Moved) {
    if !moved.sources.sources.is_empty() {
        let sources = moved.sources.sources.iter().map(|line| format!(" {}={}", line.source.name(), line.bytes));
        note(format_args!("sources:{}", sources.collect::<String>()));
    }
    if let Some(done) = &moved.written {
        let to = match done.written_to {
            WrittenTo::Local => "local",
            WrittenTo::Backend => "backend",
        };
        note(format_args!("written: {to} replicas={}", done.replicas));
    }
}

/// The peer answers an upload that asked for copies when they are there, or after a while with what there is.
fn check_copies(args: &CpArgs, moved: &Moved) -> Result<()> {
    let (Ack::Peers(wanted), Some(done)) = (args.ack, &moved.written) else { return Ok(()) };
    if done.replicas >= u32::from(wanted) {
        return Ok(());
    }
    let have = done.replicas;
    let error = anyhow!("it is written, but of the {wanted} durable copies that --ack asks for there are {have}");
    Err(with_hint(error, "the cluster goes on making copies; see 'dfstore stat --where' for how far it is"))
}

/// What to copy where, with every name settled.
enum Plan<'a> {
    FromFile(&'a Path, Target),
    FromStandard(Target),
    ToFile(DfsUrl, &'a Path),
    ToStandard(Target),
    Between(Target, Target),
}

impl<'a> Plan<'a> {
    fn of(args: &CpArgs, source: &'a Location, target: &'a Location) -> Result<Plan<'a>> {
        if args.wait == Wait::Backend {
            if !matches!(target, Location::Dfs(_)) {
                return Err(usage("--wait backend is for uploads and copies: the target must be a dfs:// url"));
            }
            if args.mode == WriteMode::Ephemeral {
                return Err(usage("--wait backend makes no sense with --mode ephemeral: the backend never gets it"));
            }
        }
        let named = |object| Target { object, query: String::new(), filter: args.filter.clone() };
        match (source, target) {
            (Location::Local(path), Location::Dfs(url)) => {
                let name = path.file_name().and_then(|name| name.to_str());
                Ok(Plan::FromFile(path, named(url.target(name.into()).map_err(usage)?)))
            }
            (Location::Standard, Location::Dfs(url)) => {
                Ok(Plan::FromStandard(named(url.target(Basename::None).map_err(usage)?)))
            }
            (Location::Dfs(url), Location::Local(path)) => {
                url.object().map_err(usage)?;
                Ok(Plan::ToFile(url.clone(), path))
            }
            (Location::Dfs(url), Location::Standard) => Ok(Plan::ToStandard(named(url.object().map_err(usage)?))),
            (Location::Dfs(from), Location::Dfs(to)) => {
                let source = named(from.object().map_err(usage)?);
                let target = named(to.target(from.basename().into()).map_err(usage)?);
                if source.object == target.object {
                    return Err(usage("source and target are the same object"));
                }
                Ok(Plan::Between(source, target))
            }
            (Location::Local(_), Location::Local(_)) => {
                Err(usage("source and target url cannot both be local file path: one must be dfs://BUCKET/KEY"))
            }
            _ => Err(usage("source or target must be a dfs:// url, e.g. dfs://bucket_name/object_key")),
        }
    }

    /// Waits until the backend has what was written.
    fn wait_for_backend(&self, context: &Context, moved: &Moved) -> Result<()> {
        let (Plan::FromFile(_, target) | Plan::FromStandard(target) | Plan::Between(_, target)) = self else {
            return Ok(());
        };
        let Some(generation) = moved.generation() else { return Ok(()) };
        let _busy = Progress::new(context.progress, "Waiting for the backend", None);
        block_on(writeback::wait_for_object(context.peer, target, generation))?
    }

    fn verb(&self) -> &'static str {
        match self {
            Plan::FromFile(..) | Plan::FromStandard(_) => "upload",
            Plan::ToFile(..) | Plan::ToStandard(_) => "download",
            Plan::Between(..) => "copy",
        }
    }

    fn run(&self, context: &Context, args: &CpArgs) -> Result<Moved> {
        match self {
            Plan::FromFile(path, target) => upload::run(context, &begin(args, target), open(path)?),
            Plan::FromStandard(target) => {
                let input = std::io::stdin().as_fd().try_clone_to_owned().context("standard input is closed")?;
                let source = Source::Stream(Box::new(File::from(input)), None);
                upload::run(context, &begin(args, target), source)
            }
            Plan::ToFile(url, path) => {
                let source = Target { filter: args.filter.clone(), ..Target::new(url.object()?) };
                let path = target::resolve(path, url)?;
                if !target::is_special(&path) {
                    return download::run(context, &source, Output::File(&path), &mut |_| {});
                }
                let opened = File::options().write(true).open(&path);
                let mut file = opened.with_context(|| format!("cannot open '{}'", path.display()))?;
                download::run(context, &source, Output::Stream(&mut file), &mut |_| {})
            }
            Plan::ToStandard(source) => {
                // Not through the line buffer of `stdout()`: whole pieces go out as they are.
                let output = std::io::stdout().as_fd().try_clone_to_owned().context("standard output is closed")?;
                let mut output = File::from(output);
                download::run(context, source, Output::Stream(&mut output), &mut |_| {})
            }
            // COPY has no word about copies to wait for, so those go through us.
            Plan::Between(source, target) if source.object.bucket == target.object.bucket && args.ack == Ack::Local => {
                copy(context.peer, source, target, args)
            }
            Plan::Between(source, target) => stream_through(context, source, target, args),
        }
    }
}

fn begin(args: &CpArgs, target: &Target) -> PutBegin {
    PutBegin {
        target: target.clone(),
        length: None,
        mode: args.mode,
        max_replicas: args.max_replicas.into(),
        ack_peers: match args.ack {
            Ack::Local => 0,
            Ack::Peers(count) => count.into(),
        },
        meta: ObjectMeta { content_type: args.content_type.clone(), ..ObjectMeta::default() },
    }
}

fn open(path: &Path) -> Result<Source> {
    let file = File::open(path).with_context(|| format!("cannot open '{}'", path.display()))?;
    let meta = file.metadata().with_context(|| format!("cannot look at '{}'", path.display()))?;
    if meta.is_dir() {
        let error = anyhow!("'{}' is a directory", path.display());
        return Err(with_hint(error, "dfstore copies single files; name the files one by one"));
    }
    if meta.is_file() { Ok(Source::File(file)) } else { Ok(Source::Stream(Box::new(file), None)) }
}

/// The peer makes the copy: no byte comes here.
fn copy(peer: &Peer, source: &Target, target: &Target, args: &CpArgs) -> Result<Moved> {
    let request = Copy { source: source.clone(), target: target.clone(), mode: Some(args.mode) };
    match block_on(peer.call(target.task(), request))?? {
        Message::CopyOk(info) => {
            Ok(Moved { length: info.meta.length, copied: Some(info.generation), ..Moved::default() })
        }
        other => Err(peer.unexpected(&other).into()),
    }
}

/// Reads one object and writes the other at the same time, through a pipe of this process. The upload knows the length
/// from the start, so a download that fails in the middle never becomes a shorter object.
fn stream_through(context: &Context, source: &Target, target: &Target, args: &CpArgs) -> Result<Moved> {
    let (reader, mut writer) = std::io::pipe().context("cannot make a pipe")?;
    let (version_sender, version) = flume::bounded::<VersionInfo>(1);
    std::thread::scope(|scope| {
        let download = scope.spawn(move || {
            let quiet = Context { progress: false, ..*context };
            let mut opened = |info: &VersionInfo| {
                let _ = version_sender.try_send(info.clone());
            };
            download::run(&quiet, source, Output::Stream(&mut writer), &mut opened)
        });
        let Ok(info) = version.recv() else { return join(download) };
        let mut begin = begin(args, target);
        let content_type = std::mem::take(&mut begin.meta.content_type);
        begin.meta = ObjectMeta { digest: String::new(), ..info.meta.clone() };
        if !content_type.is_empty() {
            begin.meta.content_type = content_type;
        }
        let uploaded = upload::run(context, &begin, Source::Stream(Box::new(reader), Some(info.meta.length)));
        // The download's error is the cause when both failed, except that it cannot write to an upload that is gone.
        match (join(download), uploaded) {
            (Err(error), _) if error.downcast_ref::<std::io::Error>().is_none() => Err(error),
            (_, uploaded) => uploaded,
        }
    })
}

fn join(download: std::thread::ScopedJoinHandle<Result<Moved>>) -> Result<Moved> {
    download.join().map_err(|_| anyhow!("the download has crashed"))?
}
