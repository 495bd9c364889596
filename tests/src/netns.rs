//! Network namespaces with shaped links, for benches that need a network of a known speed and tests that cut one.
//!
//! A [`Network`] is a bridge with an address of ours; each [`Namespace`] hangs on it by a veth pair. What leaves a
//! namespace is shaped at its own end of the pair, what enters it at the bridge's end (`tc`, token buckets); packets
//! are dropped by rules of `iptables` within the namespace. A namespace may have names of its own: `ip netns exec` shows
//! the files of `/etc/netns/NAME` as those of `/etc`. Needs root and these three programs: ask [`missing`] first, and
//! say aloud what is left out. Names carry our process id; everything is removed on drop, and what a killed run left
//! behind is removed by the next one.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{self, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Where files lie that a namespace has in place of those of `/etc`.
const FILES: &str = "/etc/netns";
/// What all of our names begin with.
const PREFIX: &str = "dfs";
/// Addresses are 10.x.y.0/24 with x from here on.
const SUBNET_FIRST: u32 = 200;
const SUBNETS: u32 = 50 * 250;
const NAMESPACES_MAX: u8 = 200;
/// A bucket of tokens holds this part of a second, and at least this much.
const BURST_MILLISECONDS: u64 = 10;
const BURST_BYTES_MIN: u64 = 256 << 10;
/// Congestion control of all hosts, whatever the default of this machine is: one that goes by loss. BBR takes the delay of
/// an empty way for that of the way, and keeps too little in flight where data and acknowledgements share a shaper's queue.
const CONGESTION: &str = "reno";
/// How long packets wait where nothing else is said.
const QUEUE: Duration = Duration::from_millis(50);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Speed of a link, in bits per second; `None` for no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What leaves the namespace.
    pub egress: Option<u64>,
    /// What enters it.
    pub ingress: Option<u64>,
    /// Packets that would wait longer in front of a bounded link are dropped, as a switch does.
    pub queue: Duration,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { egress: None, ingress: None, queue: QUEUE }
    }
}

impl Shape {
    /// The same speed both ways.
    pub fn both(megabits_per_second: u64) -> Shape {
        let bits = Some(megabits_per_second * 1_000_000);
        Shape { egress: bits, ingress: bits, ..Shape::default() }
    }

    /// With queues that hold this much.
    pub fn queue(self, queue: Duration) -> Shape {
        Shape { queue, ..self }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabits =
            |bits: Option<u64>| bits.map_or("unbounded".to_owned(), |bits| format!("{} Mbit/s", bits / 1_000_000));
        write!(out, "{} out, {} in", megabits(self.egress), megabits(self.ingress))
    }
}

/// Why namespaces cannot be had here; `None` when they can. Found out once, by making one.
pub fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(|| find_missing().err().map(|error| format!("{error:#}"))).as_deref()
}

/// Whether namespaces can be had here; says on standard error what is left out when they cannot.
pub fn available_for(what: &str) -> bool {
    match missing() {
        None => true,
        Some(why) => {
            eprintln!("SKIPPED: {what}: no network namespaces here: {why}");
            false
        }
    }
}

fn find_missing() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "they need root");
    for (program, package) in [("ip", "iproute2"), ("tc", "iproute2"), ("iptables", "iptables")] {
        let found = Command::new(program).arg("-V").output();
        ensure!(found.is_ok_and(|output| output.status.success()), "'{program}' is missing: install {package}");
    }
    let mut network = Network::start()?;
    let namespace = network.add(Shape::both(100))?;
    namespace.drop_packets_from(network.host())?;
    namespace.heal()
}

/// A bridge, and whatever hangs on it.
pub struct Network {
    bridge: String,
    /// The first three bytes of every address.
    subnet: [u8; 3],
    namespaces: u8,
}

impl Network {
    /// Makes one without namespaces.
    pub fn start() -> Result<Network> {
        remove_leftovers();
        let bridge = name('b');
        let subnet = free_subnet()?;
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        // From here on dropping it removes the bridge, whatever fails.
        let network = Network { bridge, subnet, namespaces: 0 };
        ip(&["addr", "add", &format!("{}/24", network.host()), "dev", &network.bridge])?;
        ip(&["link", "set", &network.bridge, "up"])?;
        Ok(network)
    }

    /// Our own address on it. Traffic of ours is shaped by the other end alone.
    pub fn host(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// Hangs a new namespace on it.
    pub fn add(&mut self, shape: Shape) -> Result<Namespace> {
        ensure!(self.namespaces < NAMESPACES_MAX, "more than {NAMESPACES_MAX} namespaces in one network");
        self.namespaces += 1;
        let (name_of_it, link) = (name('n'), name('v'));
        let address = self.address(self.namespaces + 1);
        ip(&["netns", "add", &name_of_it])?;
        let namespace = Namespace { name: name_of_it, link, address };
        let Namespace { name, link, .. } = &namespace;
        ip(&["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["link", "set", link, "master", &self.bridge, "up"])?;
        ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        let choose = format!("echo {CONGESTION} > /proc/sys/net/ipv4/tcp_congestion_control");
        ip(&["netns", "exec", name, "sh", "-c", &choose])?;
        namespace.shape(shape)?;
        Ok(namespace)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [first, second, third] = self.subnet;
        Ipv4Addr::new(first, second, third, last)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = ip(&["link", "del", &self.bridge]);
    }
}

/// A namespace on a [`Network`]. Processes in it must have ended before it is dropped.
pub struct Namespace {
    name: String,
    /// The bridge's end of its veth pair.
    link: String,
    address: Ipv4Addr,
}

impl Namespace {
    /// Its name, for [`crate::process::leashed_in`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address; loopback works within it too.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Bytes that have left it, with the heads of their packets.
    pub fn sent_bytes(&self) -> Result<u64> {
        self.counter("rx_bytes")
    }

    /// Bytes that have entered it, with the heads of their packets.
    pub fn received_bytes(&self) -> Result<u64> {
        self.counter("tx_bytes")
    }

    /// Sets the speed of its link.
    pub fn shape(&self, shape: Shape) -> Result<()> {
        for (mut command, rate) in [
            (tc(&["-n", &self.name, "qdisc", "replace", "dev", "eth0", "root"]), shape.egress),
            (tc(&["qdisc", "replace", "dev", &self.link, "root"]), shape.ingress),
        ] {
            match rate {
                None => command.args(["pfifo", "limit", "1000"]),
                Some(bits) => {
                    let burst = (bits / 8 * BURST_MILLISECONDS / 1000).max(BURST_BYTES_MIN);
                    command.args(["tbf", "rate", &format!("{bits}bit"), "burst", &format!("{burst}b")]);
                    command.args(["latency", &format!("{}us", shape.queue.as_micros())])
                }
            };
            run(command)?;
        }
        Ok(())
    }

    /// From now on nothing that this address sends arrives here; what is sent to it still leaves.
    pub fn drop_packets_from(&self, sender: Ipv4Addr) -> Result<()> {
        self.iptables(&["-A", "INPUT", "-s", &sender.to_string(), "-j", "DROP"])
    }

    /// Everything arrives again.
    pub fn heal(&self) -> Result<()> {
        self.iptables(&["-F", "INPUT"])
    }

    /// In processes that start in it from now on this name has these addresses, in this order.
    pub fn set_name(&self, name: &str, addresses: &[Ipv4Addr]) -> Result<()> {
        let lines = addresses.iter().map(|address| format!("{address} {name}\n"));
        let hosts: String = std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines).collect();
        let folder = Path::new(FILES).join(&self.name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(folder.join("hosts"), hosts).with_context(|| format!("writing names into {}", folder.display()))
    }

    fn iptables(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "iptables", "-w"]).args(arguments);
        run(command).map(drop)
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let path = format!("/sys/class/net/{}/statistics/{name}", self.link);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        text.trim().parse().with_context(|| format!("{path} holds {text:?}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["link", "del", &self.link]);
        let _ = ip(&["netns", "del", &self.name]);
        let _ = fs::remove_dir_all(Path::new(FILES).join(&self.name));
    }
}

/// `dfsPIDbN`: short enough for the name of a link, which has 15 characters.
fn name(kind: char) -> String {
    format!("{PREFIX}{}{kind}{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed) % 1000)
}

/// The process id within one of our names.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let (pid, number) = rest.split_once(['b', 'n', 'v'])?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

fn is_left_over(name: &str) -> bool {
    owner(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Errors do not matter: another process may be removing the same.
fn remove_leftovers() {
    for link in names_in("/sys/class/net").iter().filter(|name| is_left_over(name)) {
        let _ = ip(&["link", "del", link]);
    }
    for namespace in names_in("/run/netns").iter().filter(|name| is_left_over(name)) {
        let _ = ip(&["netns", "del", namespace]);
    }
    for namespace in names_in(FILES).iter().filter(|name| is_left_over(name)) {
        let _ = fs::remove_dir_all(Path::new(FILES).join(namespace));
    }
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A subnet that no link of this machine has, beginning at one that depends on our process id.
fn free_subnet() -> Result<[u8; 3]> {
    let used = subnets_in(&ip(&["-4", "-o", "addr"])?);
    let first = process::id().wrapping_mul(251).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    for index in (0..SUBNETS).map(|step| first.wrapping_add(step) % SUBNETS) {
        let subnet = [10, u8::try_from(SUBNET_FIRST + index / 250)?, u8::try_from(index % 250)?];
        if !used.contains(&subnet) {
            return Ok(subnet);
        }
    }
    bail!("every subnet from 10.{SUBNET_FIRST}.0.0 on is in use")
}

/// The first three bytes of every address in a list of `ip -o addr`.
fn subnets_in(list: &str) -> BTreeSet<[u8; 3]> {
    let addresses = list.split_whitespace().filter_map(|word| word.split('/').next()?.parse::<Ipv4Addr>().ok());
    addresses.map(|address| [address.octets()[0], address.octets()[1], address.octets()[2]]).collect()
}

fn tc(arguments: &[&str]) -> Command {
    let mut command = Command::new("tc");
    command.args(arguments);
    command
}

fn ip(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command)
}

fn run(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually;
    use crate::process::leashed_in;
    use crate::{dirs, process::Process};
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn names_tell_their_owner() {
        assert_eq!(owner(&name('v')), Some(process::id()));
        assert!(name('b').len() <= 15 && !is_left_over(&name('b')));
        assert_eq!(owner("dfs4194999n3"), Some(4_194_999));
        assert!(is_left_over("dfs4194999n3"));
        assert_eq!((owner("docker0"), owner("dfsx1n2"), owner("dfs12n")), (None, None, None));
    }

    #[test]
    fn used_subnets_are_seen() {
        let list =
            "1: lo    inet 127.0.0.1/8 scope host lo\n2: b    inet 10.200.3.1/24 brd 10.200.3.255 scope global b";
        assert_eq!(subnets_in(list).into_iter().collect::<Vec<_>>(), [[10, 200, 3], [127, 0, 0]]);
    }

    /// Seconds that this many bytes take from us to a listener within the namespace.
    fn time_to_send(address: SocketAddr, bytes: usize) -> f64 {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok();
        let mut stream = eventually("it listens", Duration::from_secs(20), connect).expect("connected");
        let started = Instant::now();
        stream.write_all(&vec![1; bytes]).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("ended");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the count");
        assert_eq!(answer.trim(), bytes.to_string());
        started.elapsed().as_secs_f64()
    }

    const COUNTER: &str = "import socket,sys\n\
        s=socket.create_server((sys.argv[1],int(sys.argv[2])))\n\
        while True:\n c,_=s.accept();n=0\n while True:\n  b=c.recv(65536)\n  if not b: break\n  n+=len(b)\n c.sendall(str(n).encode());c.close()";

    #[test]
    fn links_are_shaped_and_dropped_and_gone_in_the_end() {
        if !available_for("shaping and dropping") {
            return;
        }
        let folder = dirs::temporary("netns").expect("folder");
        let mut network = Network::start().expect("a network");
        let namespace = network.add(Shape::both(80)).expect("a namespace");
        let address = SocketAddr::from((namespace.address(), 7000));
        let mut command = leashed_in(Some(namespace.name()), "python3");
        command.args(["-c", COUNTER, &namespace.address().to_string(), "7000"]);
        let server = Process::start("counter", command, &folder.path().join("log")).expect("starts");
        let before = namespace.received_bytes().expect("counted");
        // 80 Mbit/s are 10 MB/s, after a burst of 256 KiB.
        let took = time_to_send(address, 5_000_000);
        assert!(took > 0.4, "5 MB through 80 Mbit/s took {took} s");
        assert!(namespace.received_bytes().expect("counted") - before > 5_000_000);
        namespace.shape(Shape::default()).expect("unbounded");
        namespace.drop_packets_from(network.host()).expect("dropped");
        assert!(TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_err());
        namespace.heal().expect("healed");
        time_to_send(address, 5_000_000);
        let names = [namespace.name.clone(), namespace.link.clone(), network.bridge.clone()];
        drop((server, namespace, network));
        for name in names {
            let paths = [format!("/sys/class/net/{name}"), format!("/run/netns/{name}")];
            assert!(paths.iter().all(|path| !Path::new(path).exists()), "{name} is still there");
        }
    }

    #[test]
    fn a_panic_leaves_nothing() {
        if !available_for("cleaning up after a panic") {
            return;
        }
        let (sender, names) = std::sync::mpsc::channel();
        let panicked = thread::spawn(move || {
            let mut network = Network::start().expect("a network");
            let namespace = network.add(Shape::default()).expect("a namespace");
            sender.send((network.bridge.clone(), namespace.name.clone())).expect("sent");
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let (bridge, namespace) = names.recv().expect("names");
        assert!(!Path::new("/sys/class/net").join(bridge).exists());
        assert!(!Path::new("/run/netns").join(namespace).exists());
        let listener = TcpListener::bind("127.0.0.1:0").expect("this process still has its own network");
        drop(listener);
    }
}
