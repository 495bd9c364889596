//! Readers at one host over shaped links: the figures of a known network come out as they must.

use std::time::Duration;

use dfstore_benches::curl::{Reader, read_at_once};
use dfstore_benches::distribution::star_bound;
use dfstore_tests::data::Payload;
use dfstore_tests::dirs;
use dfstore_tests::folder_s3::FolderS3;
use dfstore_tests::netns::{Network, Shape, available_for};

const LENGTH: u64 = 4 << 20;
const LINK_MEGABITS: u64 = 100;
const TIME_MAX: Duration = Duration::from_secs(60);

#[test]
fn a_star_takes_as_long_as_its_narrow_link() {
    if !available_for("the star") {
        return;
    }
    let mut network = Network::start().expect("a network");
    let host = network.add(Shape::both(LINK_MEGABITS)).expect("a namespace");
    let namespaces = [(); 3].map(|()| network.add(Shape::both(LINK_MEGABITS)).expect("a namespace"));
    let folder = dirs::temporary("star").expect("folder");
    let server = FolderS3::start(folder.path(), host.address().into(), Some(host.name())).expect("a server");
    let bucket = server.endpoint().bucket("star");
    bucket.create().expect("created");
    bucket.put("object", &Payload::new(1, LENGTH).bytes()).expect("put");
    let reader = |name: &str| Reader {
        namespace: Some(name.to_owned()),
        url: format!("{}/star/object", bucket.endpoint.url),
        keys: Some(bucket.endpoint.clone()),
    };
    let readers: Vec<_> = namespaces.iter().map(|namespace| reader(namespace.name())).collect();
    let before = host.sent_bytes().expect("counted");
    let times = read_at_once(&readers, LENGTH, TIME_MAX).expect("read");
    let sent = host.sent_bytes().expect("counted") - before;
    let (slowest, bound) = (times.into_iter().max().expect("three"), star_bound(LENGTH, 3, LINK_MEGABITS * 1_000_000));
    assert!(slowest > bound.mul_f64(0.8), "{slowest:?} for three copies, and the link allows {bound:?}");
    assert!((3 * LENGTH..4 * LENGTH).contains(&sent), "{sent} bytes left the host");
}
