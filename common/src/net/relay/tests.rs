#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use super::frame::Frames;
use super::mailbox::{MAILBOX_BYTES, Mailbox};
use super::*;
use crate::seed;

#[test]
fn a_workers_made_up_address_names_it_and_no_others_do() {
    for (name, number) in [("worker-1", 1), ("worker-300", 300), ("worker-16777215", (1 << 24) - 1)] {
        let address = address_of(name).unwrap();
        assert_eq!((number_of(name), number_at(address.ip())), (Some(number), Some(number)));
        let mapped = std::net::Ipv4Addr::to_ipv6_mapped(&name_ip(address));
        assert_eq!(number_at(mapped.into()), Some(number), "as a socket of both families sees it");
        assert_eq!(Shown(address).to_string(), "the coordinator's relay");
    }
    for name in ["worker-0", "worker-16777216", "worker-007", "coordinator", "worker-", ""] {
        assert_eq!(address_of(name), None, "{name}");
    }
    for address in ["10.0.0.7:1", "127.0.0.1:1", "0.0.0.0:1", "[::1]:1", "[fd00::7]:1", "[::ffff:10.0.0.7]:1", "[::]:1"] {
        let address = address.parse().unwrap();
        assert!(!is_relayed(address), "{address}");
        assert_eq!(Shown(address).to_string(), address.to_string());
    }
}

fn name_ip(address: std::net::SocketAddr) -> std::net::Ipv4Addr {
    if let std::net::SocketAddr::V4(address) = address { *address.ip() } else { panic!("{address} is of IPv6") }
}

fn packet(rng: &mut ChaCha8Rng, most: u32) -> Vec<u8> {
    let mut packet = vec![0; 1 + seed::below(rng, most) as usize];
    rng.fill_bytes(&mut packet);
    packet
}

#[test]
fn packets_come_out_of_a_stream_as_they_were_put_in_however_it_is_cut() {
    for case in 0..300 {
        let mut rng = seed::stream(case, "frames", &[]);
        let sent: Vec<(u32, Vec<u8>)> = (0..1 + case % 30).map(|_| (rng.next_u32(), packet(&mut rng, u32::from(MAX_PACKET)))).collect();
        let stream: Vec<u8> = sent.iter().flat_map(|(number, packet)| Frame::new(*number, packet).unwrap().into_bytes()).collect();
        let (mut frames, mut got, mut rest) = (Frames::default(), Vec::new(), &stream[..]);
        while !rest.is_empty() {
            let cut = (1 + seed::below(&mut rng, 9000) as usize).min(rest.len());
            frames.push(&rest[..cut]);
            rest = &rest[cut..];
            while let Some(frame) = frames.next().unwrap() {
                let readdressed = frame.number() ^ 1;
                let frame = frame.with_number(readdressed);
                got.push((frame.number() ^ 1, frame.into_packet().to_vec()));
            }
        }
        assert_eq!(got, sent, "case {case}");
    }
}

#[test]
fn what_is_no_packet_is_refused_before_it_has_come() {
    assert!(Frame::new(1, &[]).is_none() && Frame::new(1, &[0; MAX_PACKET as usize + 1]).is_none());
    assert!(Frame::new(1, &vec![0; 1 << 17]).is_none());
    for length in [0, MAX_PACKET + 1, u16::MAX] {
        let mut frames = Frames::default();
        frames.push(&[7, 0, 0, 0]);
        assert!(frames.next().unwrap().is_none());
        frames.push(&length.to_le_bytes());
        assert_eq!(frames.next().unwrap_err(), FrameError::Length { length });
    }
    for case in 0..2000 {
        let mut rng = seed::stream(case, "nonsense", &[]);
        let mut frames = Frames::default();
        frames.push(&packet(&mut rng, 40_000));
        while let Ok(Some(frame)) = frames.next() {
            assert!((1..=usize::from(MAX_PACKET)).contains(&frame.into_packet().len()));
        }
    }
}

/// A packet that says whose it is and the how-manieth.
fn numbered(of: u32, nth: u32, length: usize) -> Bytes {
    let mut packet = vec![0; length.max(8)];
    packet[..4].copy_from_slice(&of.to_le_bytes());
    packet[4..8].copy_from_slice(&nth.to_le_bytes());
    packet.into()
}

fn read(packet: &Bytes) -> (u32, u32) {
    let number = |at: usize| u32::from_le_bytes(packet[at..at + 4].try_into().unwrap());
    (number(0), number(4))
}

#[test]
fn a_mailbox_is_bounded_keeps_the_order_of_each_and_takes_nobodys_share_for_another() {
    let mut dropped_cases = 0;
    for case in 0..60 {
        let mut rng = seed::stream(case, "mailbox", &[]);
        let senders = 2 + seed::below(&mut rng, 5);
        // The first keeps within a fair share of the room; the others send as they like.
        let fair = MAILBOX_BYTES / (senders as usize + 1);
        let mut mailbox = Mailbox::default();
        let (mut waiting, mut modest, mut put, mut newest) = (0usize, 0usize, BTreeMap::new(), BTreeMap::new());
        let (mut sent_by_first, mut got_of_first, mut dropped) = (0, 0, 0i64);
        for _ in 0..4000 {
            let of = 1 + seed::below(&mut rng, senders);
            let length = 8 + seed::below(&mut rng, 6400) as usize;
            if of == 1 && modest + length + 64 > fair {
                continue;
            }
            let nth: &mut u32 = put.entry(of).or_default();
            *nth += 1;
            mailbox.put(of, numbered(of, *nth, length));
            if of == 1 {
                sent_by_first += 1;
                modest += length + 64;
            }
            dropped += 1;
            if seed::below(&mut rng, 4) == 0
                && let Some(packet) = mailbox.pop()
            {
                dropped -= 1;
                let (of, nth) = read(&packet);
                assert!(newest.insert(of, nth).is_none_or(|before| before < nth), "case {case}: order of {of}");
                if of == 1 {
                    got_of_first += 1;
                    modest -= packet.len() + 64;
                }
            }
        }
        while let Some(packet) = mailbox.pop() {
            dropped -= 1;
            waiting += packet.len() + 64;
            let (of, nth) = read(&packet);
            assert!(newest.insert(of, nth).is_none_or(|before| before < nth), "case {case}: order of {of}");
            got_of_first += u32::from(of == 1);
        }
        assert!(waiting <= MAILBOX_BYTES, "case {case}: {waiting} bytes waited");
        assert_eq!(got_of_first, sent_by_first, "case {case}: packets of one within its share were dropped");
        dropped_cases += u32::from(dropped > 0);
    }
    assert!(dropped_cases > 30, "only {dropped_cases} mailboxes were ever full");
}

#[test]
fn shares_are_emptied_in_turn() {
    let mut mailbox = Mailbox::default();
    for nth in 0..3 {
        for of in [5, 2, 9] {
            mailbox.put(of, numbered(of, nth, 8));
        }
    }
    let order: Vec<u32> = std::iter::from_fn(|| mailbox.pop()).map(|packet| read(&packet).0).collect();
    assert_eq!(order, [2, 5, 9, 2, 5, 9, 2, 5, 9]);
    mailbox.put(2, numbered(2, 0, 8));
    mailbox.clear();
    assert!(mailbox.pop().is_none());
}
