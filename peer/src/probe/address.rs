//! Under which address of this machine other nodes reach it.
//!
//! What listens on one address tells that one. What listens on all of them tells the one from which the first node
//! that is known from the start is reached: the other nodes are there, too. It takes a look at the routes, and may look
//! up names; nothing is sent to anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use crate::rt::interfaces;

/// The address to tell others. `given` is the configured one, `listen` the one that is bound, `contacts` are the nodes
/// known from the start (`host:port`).
pub fn advertised(given: Option<IpAddr>, listen: IpAddr, contacts: &[String]) -> IpAddr {
    if let Some(address) = given {
        return address;
    }
    if !listen.is_unspecified() {
        return listen;
    }
    towards_first(listen, contacts).unwrap_or_else(|| {
        let own = interfaces::addresses().unwrap_or_default();
        own.into_iter().find(|address| is_reachable(listen, *address)).unwrap_or(loopback(listen))
    })
}

/// The source address of the way to the first of them that has one.
fn towards_first(listen: IpAddr, contacts: &[String]) -> Option<IpAddr> {
    let known = contacts.iter().filter_map(|contact| contact.to_socket_addrs().ok()).flatten();
    known.filter(|address| hears(listen, address.ip())).find_map(towards)
}

fn towards(contact: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if contact.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(contact).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified()).then_some(own)
}

/// Whether what listens on all addresses of `listen`'s family hears this one.
fn hears(listen: IpAddr, address: IpAddr) -> bool {
    listen.is_ipv6() || address.is_ipv4()
}

fn is_reachable(listen: IpAddr, address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    hears(listen, address) && !address.is_loopback() && !link_local
}

fn loopback(listen: IpAddr) -> IpAddr {
    if listen.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

    #[test]
    fn what_is_said_wins_and_one_address_is_itself() {
        let one = IpAddr::from([10, 0, 0, 7]);
        assert_eq!(advertised(Some(one), ANY, &["127.0.0.1:1".into()]), one);
        assert_eq!(advertised(None, one, &["127.0.0.1:1".into()]), one);
    }

    #[test]
    fn the_way_to_the_first_contact_tells_the_address() {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(advertised(None, ANY, &["127.0.0.1:9".into()]), localhost);
        assert_eq!(advertised(None, ANY6, &["no-such-host.invalid:9".into(), "127.0.0.1:9".into()]), localhost);
        if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            assert_eq!(advertised(None, ANY6, &["[::1]:9".into()]), IpAddr::V6(Ipv6Addr::LOCALHOST));
            assert_eq!(advertised(None, ANY, &["[::1]:9".into(), "127.0.0.1:9".into()]), localhost, "IPv4 only");
        }
    }

    #[test]
    fn without_contacts_it_is_an_address_that_others_can_reach_if_there_is_one() {
        for listen in [ANY, ANY6] {
            let found = advertised(None, listen, &[]);
            let own = interfaces::addresses().expect("listed");
            let reachable: Vec<_> = own.into_iter().filter(|address| is_reachable(listen, *address)).collect();
            assert_eq!(found, reachable.first().copied().unwrap_or(loopback(listen)));
            assert!(!found.is_unspecified() && hears(listen, found));
        }
        assert!(!is_reachable(ANY6, "fe80::1".parse().expect("an address")));
        assert!(!is_reachable(ANY, IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!is_reachable(ANY, "fd00::1".parse().expect("an address")));
    }
}
