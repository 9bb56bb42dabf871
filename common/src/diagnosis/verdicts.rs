//! What figures mean. Nothing is measured here.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::reach::Reached;
use super::visitor::{Direction, Look, Transfer};
use crate::ui::Finding;

/// The buffers that a fast link needs, each way.
const BUFFER: u64 = 4 << 20;

/// Files that a coordinator may want to have open: 128 connections of the page's readers, the
/// record, checkpoints on their way, and the data.
const DESCRIPTORS: u64 = 1024;

/// Below this, exchanging the gradients of a small model takes longer than to compute them:
/// 100 Mbit/s, in bytes a second.
const SLOW: f64 = 12.5e6;

/// From this ratio on, several connections carry more than one.
const GAIN: f64 = 1.5;

/// From this round trip on, the hops of a ring are what a step waits for.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(20);

/// From this difference on, clocks are worth mending, in ms.
const CLOCK_MS: f64 = 1e3;

/// The UDP payload of an Ethernet packet over IPv6, less the headers of one tunnel.
const ETHERNET: u16 = 1_400;

/// From this share on, more packets are lost than a full queue drops.
const LOST: f64 = 0.02;

pub(super) fn socket_buffers(limits: Option<(u64, u64)>) -> Finding {
    let name = "UDP buffers";
    match limits {
        None => Finding::ok(name, "unknown on this system"),
        Some((receive, send)) => {
            let value = format!("at most {receive} and {send} bytes, in and out");
            if receive.min(send) >= BUFFER {
                return Finding::ok(name, value);
            }
            Finding::warn(name, value, format!("for fast links: sysctl -w net.core.rmem_max={BUFFER} net.core.wmem_max={BUFFER}"))
        }
    }
}

/// Whether the kernel holds its clock to be that of others; none where it does not say.
pub(super) fn synchronised(synchronised: Option<bool>) -> Finding {
    match synchronised {
        Some(true) => Finding::ok("clock", "kept by the system, as it says"),
        None => Finding::ok("clock", "the system does not say whether it keeps it"),
        Some(false) => Finding::warn(
            "clock",
            "the system does not say that it keeps it right",
            "certificates and tokens have times: have the machine take its own from NTP (chrony, systemd-timesyncd), unless its host does",
        ),
    }
}

/// Files that a process may have open, now and if it asks; none for no limit.
pub(super) fn descriptors(now: Option<u64>, most: Option<u64>) -> Finding {
    let words = |limit: Option<u64>| limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
    let value = format!("{}, at most {}", words(now), words(most));
    if now.is_none_or(|now| now >= DESCRIPTORS) {
        return Finding::ok("open files", value);
    }
    let advice = format!(
        "checkpoints, data and readers of the page need them: ulimit -n {DESCRIPTORS}, or LimitNOFILE={DESCRIPTORS} of the service"
    );
    Finding::warn("open files", value, advice)
}

pub(super) fn disk(name: &str, folder: &Path, free: Result<u64, String>, wanted: u64, what: &str) -> Finding {
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let folder = folder.display();
    match free {
        Err(problem) => Finding::fail(name, problem, "name a folder in which this user may write"),
        Ok(free) => {
            let value = format!("`{folder}`, {} free", gigabytes(free));
            if free >= wanted {
                return Finding::ok(name, value);
            }
            Finding::warn(name, value, format!("{what} may need {}: make room, or name another folder", gigabytes(wanted)))
        }
    }
}

pub(super) fn name(host: &str, found: &Result<Vec<SocketAddr>, String>) -> Finding {
    match found.as_deref() {
        Err(problem) => Finding::fail("name", format!("`{host}`: {problem}"), "write the coordinator's host:port as its join line has it"),
        Ok([]) => Finding::fail("name", format!("`{host}` has no address"), "ask for the name in the system's hosts file or DNS"),
        Ok(addresses) => {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            Finding::ok("name", format!("`{host}` is {}", addresses.join(", ")))
        }
    }
}

/// Way and answer of each address, in the order in which they were found; and the place of
/// the first that answers.
pub(super) fn reached(tried: &[(SocketAddr, Reached)]) -> (Vec<Finding>, Option<usize>) {
    let answers = tried.iter().position(|(_, reached)| matches!(reached, Reached::Answered { .. }));
    let Some((address, reached)) = answers.or(if tried.is_empty() { None } else { Some(0) }).map(|at| &tried[at]) else {
        return (Vec::new(), None);
    };
    let route = |from: &IpAddr| Finding::ok("route", format!("from {from} to {}", address.ip()));
    let findings = match reached {
        Reached::NoRoute { cause } => {
            vec![Finding::fail(
                "route",
                format!("no way to {}: {cause}", address.ip()),
                "see that the network is up, and ask `ip route get` for the way",
            )]
        }
        Reached::Closed { from } => vec![
            route(from),
            Finding::fail(
                "UDP",
                format!("the machine of {address} is there, but nothing listens on this UDP port"),
                "start the coordinator; if it runs, compare the port with its join line, and --listen with this address",
            ),
        ],
        Reached::Silent { from } => vec![
            route(from),
            Finding::fail(
                "UDP",
                format!("nothing came back from {address}"),
                format!(
                    "let UDP port {} through the firewalls and security groups on the way to the coordinator, and its answers back; TCP is not enough",
                    address.port()
                ),
            ),
        ],
        Reached::Answered { from, took } => {
            let value = format!("out and back: {address} answers after {}", milliseconds(*took));
            let silent: Vec<String> = tried[..answers.unwrap_or(0)].iter().map(|(address, _)| address.to_string()).collect();
            let udp = if silent.is_empty() {
                Finding::ok("UDP", value)
            } else {
                let value = format!("{value}, {} do not", silent.join(" and "));
                Finding::warn("UDP", value, format!("name {address} instead of the host"))
            };
            vec![route(from), udp]
        }
    };
    (findings, answers)
}

/// `from` is the address from which this machine sends, `seen` the one that the coordinator
/// sees.
pub(super) fn seen(from: IpAddr, seen: IpAddr) -> Finding {
    if from == seen {
        return Finding::ok("seen as", seen.to_string());
    }
    Finding::warn(
        "seen as",
        format!("{seen}, while this machine sends from {from}"),
        "addresses are translated on the way (NAT): other workers reach this one directly only if a UDP port is forwarded; name it with --advertise. Otherwise they exchange through the coordinator, which is slower",
    )
}

/// Whether a datagram that nobody here has asked for arrives.
pub(super) fn inbound(knocked: &Result<(u16, bool), String>) -> Finding {
    let name = "UDP from others";
    let advice = "other workers reach this one directly only if a UDP port is open here: name it with `worker join --listen 0.0.0.0:PORT`. Otherwise they exchange through the coordinator, which is slower";
    match knocked {
        Ok((port, true)) => Finding::ok(name, format!("a datagram that the coordinator sends by itself reaches port {port}")),
        Ok((port, false)) => {
            Finding::warn(name, format!("a datagram that the coordinator sends by itself does not reach port {port}"), advice)
        }
        Err(problem) => Finding::warn(name, format!("not tried: {problem}"), advice),
    }
}

/// Round trip and clock; none without a look.
pub(super) fn looks(looks: &[Look]) -> Vec<Finding> {
    let mut sorted = looks.to_vec();
    sorted.sort_by_key(|look| look.round_trip);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return Vec::new() };
    let median = sorted[sorted.len() / 2].round_trip;
    let value = format!(
        "{} (median of {}; {} to {})",
        milliseconds(median),
        looks.len(),
        milliseconds(least.round_trip),
        milliseconds(most.round_trip)
    );
    let round_trip = if median < LONG_ROUND_TRIP {
        Finding::ok("round trip", value)
    } else {
        Finding::warn(
            "round trip",
            value,
            "a bucket of gradients takes it some times round the ring: larger cluster.bucket_bytes, or nearer machines",
        )
    };
    // The look that took least says the time best: it is wrong by half its round trip at most.
    let ahead = least.ahead_ms;
    let value = format!(
        "the coordinator is {:.0} ms {}, give or take {}",
        ahead.abs(),
        if ahead < 0.0 { "behind" } else { "ahead" },
        milliseconds(least.round_trip / 2)
    );
    let clock = if ahead.abs() < CLOCK_MS {
        Finding::ok("clock", value)
    } else {
        Finding::warn("clock", value, "times in logs and records do not fit each other: have both machines take theirs from NTP")
    };
    vec![round_trip, clock]
}

/// Bytes a second, as they arrive: of the time of a transfer, one round trip is not theirs.
pub(super) fn rate(transfer: Transfer, round_trip: Duration) -> f64 {
    let took = transfer.took.saturating_sub(round_trip).max(transfer.took / 4).as_secs_f64();
    transfer.bytes as f64 / took.max(1e-6)
}

/// `one`: bytes a second over one connection; `several` over as many as `connections`.
pub(super) fn bandwidth(direction: Direction, one: f64, several: f64, connections: usize) -> Finding {
    let name = match direction {
        Direction::Up => "to coordinator",
        Direction::Down => "from coordinator",
    };
    let value = format!("{} with 1 connection, {} with {connections}", bits(one), bits(several));
    if one.max(several) < SLOW {
        let advice = "gradients may take longer than computing them: `coordinator check CONFIG --link RATE` forecasts it";
        return Finding::warn(name, value, advice);
    }
    if several >= GAIN * one {
        let advice = "one connection does not fill this way: raise the UDP buffers on both machines, and look for losses";
        return Finding::warn(name, value, advice);
    }
    Finding::ok(name, value)
}

/// `packet`: the largest UDP payload that was found to arrive.
pub(super) fn packets(packet: u16) -> Finding {
    let value = format!("{packet} bytes");
    if packet >= ETHERNET {
        return Finding::ok("packet size", value);
    }
    let advice = "less than Ethernet carries: a tunnel or VPN is on the way, or large packets are dropped; each packet costs the same, so transfers are slower";
    Finding::warn("packet size", value, advice)
}

/// Packets of this machine that did not arrive, of those that it sent.
pub(super) fn losses(lost: u64, sent: u64) -> Finding {
    let share = lost as f64 / sent.max(1) as f64;
    let value = format!("{lost} of {sent} packets ({:.2} %)", 100.0 * share);
    if share < LOST {
        return Finding::ok("lost", value);
    }
    Finding::warn(
        "lost",
        value,
        "a queue overflows or a link is bad: raise the UDP buffers of the coordinator, and look at the counters of `ip -s link`",
    )
}

fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

fn bits(bytes_per_second: f64) -> String {
    let mbit = bytes_per_second * 8e-6;
    if mbit < 1e3 { format!("{mbit:.0} Mbit/s") } else { format!("{:.1} Gbit/s", mbit / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Verdict;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5));

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 7474))
    }

    #[test]
    fn buffers_name_the_line_that_mends_them() {
        assert_eq!(socket_buffers(Some((4_194_304, 4_194_304))).verdict, Verdict::Ok);
        for limits in [(212_992, 8 << 20), (8 << 20, 212_992)] {
            let found = socket_buffers(Some(limits));
            assert_eq!(found.verdict, Verdict::Warn);
            assert_eq!(found.advice.as_deref(), Some("for fast links: sysctl -w net.core.rmem_max=4194304 net.core.wmem_max=4194304"));
        }
        assert_eq!(socket_buffers(None).verdict, Verdict::Ok);
    }

    #[test]
    fn a_disk_is_written_roomy_or_not() {
        let with = |free| disk("cache", Path::new("/c"), free, 20_000_000_000, "streamed samples");
        assert_eq!(with(Ok(20_000_000_000)).verdict, Verdict::Ok);
        let little = with(Ok(1_500_000_000));
        assert_eq!((little.verdict, little.value.as_str()), (Verdict::Warn, "`/c`, 1.5 GB free"));
        assert!(little.advice.is_some_and(|advice| advice.contains("streamed samples may need 20.0 GB")));
        assert_eq!(with(Err("read-only".to_owned())).verdict, Verdict::Fail);
    }

    #[test]
    fn what_does_not_answer_is_told_apart() {
        let one = |reached| {
            let (findings, answers) = reached_one(reached);
            assert_eq!(answers, None);
            findings
        };
        let no_route = one(Reached::NoRoute { cause: "Network is unreachable".to_owned() });
        assert_eq!((no_route.len(), no_route[0].name.as_str(), no_route[0].verdict), (1, "route", Verdict::Fail));
        let closed = one(Reached::Closed { from: HERE });
        assert!(closed[0].verdict == Verdict::Ok && closed[1].verdict == Verdict::Fail && closed[1].value.contains("nothing listens"));
        let silent = one(Reached::Silent { from: HERE });
        assert!(silent[1].advice.as_ref().is_some_and(|advice| advice.contains("UDP port 7474")));
        let (good, answers) = reached_one(Reached::Answered { from: HERE, took: Duration::from_micros(300) });
        assert_eq!((answers, good[0].value.as_str()), (Some(0), "from 10.0.0.5 to 10.0.0.1"));
        assert_eq!(good[1], Finding::ok("UDP", "out and back: 10.0.0.1:7474 answers after 0.30 ms"));
        assert_eq!(reached(&[]), (Vec::new(), None));
    }

    fn reached_one(outcome: Reached) -> (Vec<Finding>, Option<usize>) {
        reached(&[(address(1), outcome)])
    }

    #[test]
    fn of_several_addresses_the_one_that_answers_is_taken_and_named() {
        let answered = Reached::Answered { from: HERE, took: Duration::from_millis(20) };
        let tried = [(address(1), Reached::Silent { from: HERE }), (address(2), answered)];
        let (findings, answers) = reached(&tried);
        assert_eq!((answers, findings[1].verdict), (Some(1), Verdict::Warn));
        assert!(findings[1].value.contains("10.0.0.2:7474 answers after 20 ms, 10.0.0.1:7474 do not"), "{findings:?}");
    }

    #[test]
    fn translated_and_blocked_addresses_are_warned_of() {
        assert_eq!(seen(HERE, HERE).verdict, Verdict::Ok);
        assert_eq!(seen(HERE, address(9).ip()).verdict, Verdict::Warn);
        let verdicts = [Ok((7, true)), Ok((7, false)), Err("taken".to_owned())].map(|knocked| inbound(&knocked).verdict);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn, Verdict::Warn]);
    }

    #[test]
    fn the_quickest_look_says_the_time_and_the_median_the_round_trip() {
        let look = |ms: u64, ahead_ms| Look { round_trip: Duration::from_millis(ms), ahead_ms };
        let near = looks(&[look(90, 40.0), look(2, -3.0), look(4, -1.0)]);
        assert_eq!(near[0], Finding::ok("round trip", "4.00 ms (median of 3; 2.00 ms to 90 ms)"));
        assert_eq!(near[1], Finding::ok("clock", "the coordinator is 3 ms behind, give or take 1.00 ms"));
        let far = looks(&[look(60, 2500.0)]);
        assert_eq!(far.iter().map(|f| f.verdict).collect::<Vec<_>>(), [Verdict::Warn, Verdict::Warn]);
        assert!(far[1].value.contains("2500 ms ahead"));
        assert!(looks(&[]).is_empty());
    }

    #[test]
    fn a_rate_leaves_the_round_trip_out() {
        let transfer = |bytes, ms| Transfer { bytes, took: Duration::from_millis(ms) };
        let second = rate(transfer(100_000_000, 1050), Duration::from_millis(50));
        assert!((second - 1e8).abs() < 1.0, "{second}");
        // A round trip that seems longer than the transfer does not make it infinite.
        let odd = rate(transfer(1000, 10), Duration::from_secs(1));
        assert!((odd - 400_000.0).abs() < 1.0, "{odd}");
        assert!(rate(transfer(0, 0), Duration::ZERO).abs() < 1e-9);
    }

    #[test]
    fn slow_ways_and_those_that_one_connection_does_not_fill_are_warned_of() {
        let of = |one, several| bandwidth(Direction::Up, one, several, 4);
        assert_eq!(of(117e6, 118e6), Finding::ok("to coordinator", "936 Mbit/s with 1 connection, 944 Mbit/s with 4"));
        assert!(of(1e6, 1.1e6).advice.is_some_and(|advice| advice.contains("--link")));
        assert!(of(117e6, 400e6).advice.is_some_and(|advice| advice.contains("buffers")));
        assert_eq!(bandwidth(Direction::Down, 5e9, 6e9, 4).value, "40.0 Gbit/s with 1 connection, 48.0 Gbit/s with 4");
    }

    #[test]
    fn small_packets_and_lost_ones_are_warned_of() {
        assert_eq!([1200, 1399, 1400, 1452, 65_000].map(|size| packets(size).verdict == Verdict::Ok), [false, false, true, true, true]);
        assert_eq!(losses(0, 0).verdict, Verdict::Ok);
        assert_eq!(losses(3, 1000).value, "3 of 1000 packets (0.30 %)");
        assert_eq!(losses(30, 1000).verdict, Verdict::Warn);
    }

    #[test]
    fn a_clock_of_its_own_and_too_few_files_are_warned_of() {
        let clocks = [Some(true), None, Some(false)].map(|known| synchronised(known).verdict);
        assert_eq!(clocks, [Verdict::Ok, Verdict::Ok, Verdict::Warn]);
        assert_eq!(descriptors(None, None), Finding::ok("open files", "any number, at most any number"));
        assert_eq!(descriptors(Some(1024), Some(1 << 20)).verdict, Verdict::Ok);
        assert!(descriptors(Some(256), Some(4096)).advice.is_some_and(|advice| advice.contains("ulimit -n 1024")));
    }

    #[test]
    fn a_name_is_found_or_not() {
        assert!(name("c:7474", &Ok(vec![address(1), address(2)])).value.ends_with("is 10.0.0.1:7474, 10.0.0.2:7474"));
        assert_eq!([name("c", &Err("no port".to_owned())), name("c", &Ok(Vec::new()))].map(|f| f.verdict), [Verdict::Fail; 2]);
    }
}
