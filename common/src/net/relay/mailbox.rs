//! Packets that wait for one stream, in shares: one for each worker that they are from (at
//! the coordinator) or for (at a worker). Bounded; pure.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

/// The most bytes that wait, those of bookkeeping included: what the connections of two
/// neighbours have in flight.
pub(super) const MAILBOX_BYTES: usize = 4 << 20;
/// What keeping a packet costs beside its bytes.
const OVERHEAD: usize = 64;

/// Where there is no room, the largest share loses its newest packet, so that nobody can take
/// another's share; and the shares are emptied in turn, a packet each.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    shares: BTreeMap<u32, Share>,
    bytes: usize,
    /// The share that was served last.
    last: u32,
}

#[derive(Debug, Default)]
struct Share {
    packets: VecDeque<Bytes>,
    bytes: usize,
}

fn cost(packet: &Bytes) -> usize {
    packet.len() + OVERHEAD
}

impl Mailbox {
    /// Adds a packet to the share of worker `of`; it may be dropped, or another one for it.
    pub(super) fn put(&mut self, of: u32, packet: Bytes) {
        let cost = cost(&packet);
        while self.bytes + cost > MAILBOX_BYTES {
            let own = cost + self.shares.get(&of).map_or(0, |share| share.bytes);
            let largest = self.shares.iter().max_by_key(|(_, share)| share.bytes).filter(|(_, share)| share.bytes > own);
            let Some(largest) = largest.map(|(&number, _)| number) else { return };
            self.take(largest, VecDeque::pop_back);
        }
        let share = self.shares.entry(of).or_default();
        share.packets.push_back(packet);
        share.bytes += cost;
        self.bytes += cost;
    }

    /// The next packet.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let after = self.shares.range((Bound::Excluded(self.last), Bound::Unbounded)).next();
        let number = after.or_else(|| self.shares.first_key_value()).map(|(&number, _)| number)?;
        self.last = number;
        self.take(number, VecDeque::pop_front)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn take(&mut self, number: u32, which: impl FnOnce(&mut VecDeque<Bytes>) -> Option<Bytes>) -> Option<Bytes> {
        let share = self.shares.get_mut(&number)?;
        let packet = which(&mut share.packets);
        let freed = packet.as_ref().map_or(0, cost);
        share.bytes -= freed;
        self.bytes -= freed;
        if share.packets.is_empty() {
            self.shares.remove(&number);
        }
        packet
    }
}
