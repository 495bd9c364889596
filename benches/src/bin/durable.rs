//! `dfstore-durable`: small durable writes against the sync of the same disk, and what writers gain by coming together.
//!
//! In turn: a loop that writes 4 KiB and calls `fdatasync`; one client that puts 4 KiB and waits for the answer; the loop
//! again; many clients that put at once. Between the runs the peer writes everything back, so that each begins with a quiet disk.
//! The S3 server, which stands for another machine, gets only the time of the cores that nothing else wants, and keeps
//! its objects in memory: it is not to meet the peer at the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use dfstore_benches::lab::Lab;
use dfstore_benches::load;
use dfstore_benches::pairs::Quartiles;
use dfstore_tests::dirs;
use dfstore_tests::http::Connection;
use dfstore_tests::peer::Peer;

const BUCKET: &str = "bench";
const LENGTH: usize = 4096;
const QUIET_TIMEOUT: Duration = Duration::from_secs(120);

/// Measures how long a small write takes to be durable.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds, after one warm-up.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Writes of each client in a round.
    #[arg(long, default_value_t = 200)]
    writes: u64,
    /// Clients that write at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Write mode: 0 (async, written back later) or 2 (ephemeral, never written back).
    #[arg(long, default_value_t = 0)]
    mode: u8,
    /// Let the S3 server take its share of the cores: beside other programs idle time may never come.
    #[arg(long)]
    server_shares_cores: bool,
}

fn main() -> ExitCode {
    dfstore_benches::exit_code(run(&Arguments::parse()))
}

/// The figures of a round: times of one write in microseconds, and writes per second.
struct Round {
    sync_us: f64,
    put_us: f64,
    alone_per_second: f64,
    /// Of one catalog transaction while one client writes.
    commit_us: f64,
    together_per_second: f64,
    /// Writes in one commit while all write.
    group: f64,
}

fn run(arguments: &Arguments) -> Result<()> {
    let folder = dirs::temporary("durable")?;
    let file = File::create(folder.path().join("file"))?;
    file.write_all_at(&vec![1; LENGTH * usize::try_from(arguments.writes)?], 0)?;
    file.sync_all()?;
    let lab = Lab::start_with_distant_server(arguments.server_shares_cores)?;
    let mut rounds = Vec::new();
    for number in 0..=arguments.rounds {
        let round = measured(arguments, &file, &lab, number)?;
        eprintln!(
            "{}: fdatasync {:.0} us, PUT {:.0} us (catalog {:.0} us), {:.0} PUT/s alone, {:.0} PUT/s of {} clients ({:.1} in a commit)",
            if number == 0 { "warm-up".to_owned() } else { format!("round {number}") },
            round.sync_us,
            round.put_us,
            round.commit_us,
            round.alone_per_second,
            round.together_per_second,
            arguments.clients,
            round.group,
        );
        if number > 0 {
            rounds.push(round);
        }
    }
    let figures = |figure: fn(&Round) -> f64| Quartiles::of(rounds.iter().map(figure).collect());
    println!(
        "{LENGTH} bytes, mode {}, {} clients; medians of {} rounds",
        arguments.mode,
        arguments.clients,
        rounds.len()
    );
    println!("fdatasync, p50                {:>8.0} us", figures(|round| round.sync_us).median);
    println!("PUT of one client, p50        {:>8.0} us", figures(|round| round.put_us).median);
    let ratio = figures(|round| round.put_us / round.sync_us);
    println!("PUT against fdatasync         {:>8.2}  ({:.2} to {:.2})", ratio.median, ratio.first, ratio.third);
    let gain = figures(|round| round.together_per_second / round.alone_per_second);
    println!("rate of all against one       {:>8.1}  ({:.1} to {:.1})", gain.median, gain.first, gain.third);
    Ok(())
}

fn measured(arguments: &Arguments, file: &File, lab: &Lab, round: u32) -> Result<Round> {
    let mut syncs = synced(file, arguments.writes)?;
    let path = |client: usize, number: usize| {
        let key = format!("r{round}-{client}-{number}");
        format!("{}?mode={}", Peer::object_path(BUCKET, &key), arguments.mode)
    };
    let put = |connection: &mut Connection, path: &str| -> Result<()> {
        let answer = connection.request("PUT", path, &[], &[3; LENGTH])?;
        ensure!(answer.status() == 200, "PUT: {} {}", answer.status(), answer.text());
        Ok(())
    };
    let mut alone = Connection::open(lab.peer.address())?;
    let mut puts = Vec::new();
    let (commits_before, busy_before) = commits(lab)?;
    let began = Instant::now();
    for number in 0..usize::try_from(arguments.writes)? {
        let began = Instant::now();
        put(&mut alone, &path(usize::MAX, number))?;
        puts.push(began.elapsed());
    }
    let alone_per_second = arguments.writes as f64 / began.elapsed().as_secs_f64();
    let (commits_alone, busy) = commits(lab)?;
    until_quiet(lab)?;
    // The disk's pace drifts: what the writes are compared with is taken on both sides of them.
    syncs.extend(synced(file, arguments.writes)?);
    let open = |_| Ok((Connection::open(lab.peer.address())?, 0));
    let mut clients = (0..arguments.clients).map(open).collect::<Result<Vec<_>>>()?;
    let (commits_together, _) = commits(lab)?;
    let took = load::rounds(&mut clients, arguments.writes, |index, (connection, number)| {
        *number += 1;
        put(connection, &path(index, *number))
    })?;
    let commits_together = commits(lab)?.0 - commits_together;
    until_quiet(lab)?;
    let all = arguments.writes as f64 * arguments.clients as f64;
    Ok(Round {
        sync_us: median_us(&mut syncs),
        put_us: median_us(&mut puts),
        alone_per_second,
        commit_us: (busy - busy_before) * 1e6 / (commits_alone - commits_before),
        together_per_second: all / took.as_secs_f64(),
        group: all / commits_together,
    })
}

/// The times of so many rewrites of a block with its sync.
fn synced(file: &File, writes: u64) -> Result<Vec<Duration>> {
    let one = |number| {
        let began = Instant::now();
        file.write_all_at(&[2; LENGTH], number * LENGTH as u64)?;
        file.sync_data()?;
        Ok(began.elapsed())
    };
    (0..writes).map(one).collect()
}

/// Catalog transactions so far, and the seconds they took.
fn commits(lab: &Lab) -> Result<(f64, f64)> {
    let metrics = lab.peer.metrics()?;
    let of = |part: &str| metrics.sum(&format!("dfstore_catalog_commit_duration_seconds_{part}"), &[]);
    Ok((of("count"), of("sum")))
}

fn median_us(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn until_quiet(lab: &Lab) -> Result<()> {
    lab.peer.metrics_until("everything is written back", QUIET_TIMEOUT, |metrics| {
        metrics.sum("dfstore_writeback_queue", &[]) == 0.0
    })
}
