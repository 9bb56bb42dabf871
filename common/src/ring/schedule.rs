//! The ring all-reduce schedule as data: which chunk a rank sends and receives in every
//! hop. It knows no socket, no values and no number format.
//!
//! A bucket is cut into `world` chunks. Reduce-scatter: in each of `world - 1`
//! hops a rank passes a partial sum to its successor and adds what its
//! predecessor sent; it then owns one fully reduced chunk. All-gather: in
//! another `world - 1` hops the reduced chunks go once round the ring. Each rank
//! sends `2 (world - 1) / world` of the bucket, the least any all-reduce can
//! send (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for
//! clusters of workstations").
//!
//! Every chunk is summed in one order along the ring and then copied, so all
//! ranks end with the same bits.

use std::ops::Range;

/// Values that are encoded and passed on at a time. Small enough that a rank forwards a
/// chunk while it is still arriving, and that the allocator reuses memory instead of
/// mapping new pages.
pub const SEGMENT: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The received values are added to the rank's own values.
    ReduceScatter,
    /// The received values are the sum and replace the rank's own values.
    AllGather,
}

/// One exchange with both neighbours. From the second hop on, a rank sends the
/// chunk that it received in the hop before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub phase: Phase,
    pub send_chunk: usize,
    pub recv_chunk: usize,
    /// This hop completes the sum of `recv_chunk`: the rank owns it.
    pub completes: bool,
}

/// The hops of `rank` in a ring of `world`, in order: none for a world of one.
pub fn hops(rank: usize, world: usize) -> Vec<Hop> {
    assert!(rank < world, "rank {rank} in a world of {world}");
    let back = |from: usize, by: usize| (from + world - by % world) % world;
    let scatter = (0..world - 1).map(|h| Hop {
        phase: Phase::ReduceScatter,
        send_chunk: back(rank, h),
        recv_chunk: back(rank, h + 1),
        completes: h + 2 == world,
    });
    let gather =
        (0..world - 1).map(|h| Hop { phase: Phase::AllGather, send_chunk: back(rank + 1, h), recv_chunk: back(rank, h), completes: false });
    scatter.chain(gather).collect()
}

/// The hops in which `rank` of a ring of `world` gathers the blocks of all ranks: chunk r is
/// what rank r contributes.
pub fn gather_hops(rank: usize, world: usize) -> Vec<Hop> {
    assert!(rank < world, "rank {rank} in a world of {world}");
    let back = |by: usize| (rank + world - by) % world;
    let hop = |h| Hop { phase: Phase::AllGather, send_chunk: back(h), recv_chunk: back(h + 1), completes: false };
    (0..world - 1).map(hop).collect()
}

/// The elements of chunk `index` when a bucket of `length` elements is cut for a
/// ring of `world`: contiguous, sizes differ by at most one, larger ones first.
/// Chunks of a bucket shorter than the world may be empty.
pub fn chunk(length: usize, world: usize, index: usize) -> Range<usize> {
    assert!(index < world, "chunk {index} in a world of {world}");
    let (small, extra) = (length / world, length % world);
    let start = index * small + index.min(extra);
    start..start + small + usize::from(index < extra)
}

/// The rank that receives from `rank`.
pub fn successor(rank: usize, world: usize) -> usize {
    (rank + 1) % world
}

/// The rank that sends to `rank`.
pub fn predecessor(rank: usize, world: usize) -> usize {
    (rank + world - 1) % world
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the schedule of all ranks hop by hop and returns each rank's result
    /// and how many elements it sent.
    fn simulate(inputs: &[Vec<f32>]) -> (Vec<Vec<f32>>, Vec<usize>) {
        let (world, length) = (inputs.len(), inputs[0].len());
        let schedules: Vec<_> = (0..world).map(|r| hops(r, world)).collect();
        let mut state = inputs.to_vec();
        let mut sent = vec![0; world];
        for h in 0..schedules[0].len() {
            let messages: Vec<Vec<f32>> = (0..world).map(|r| state[r][chunk(length, world, schedules[r][h].send_chunk)].to_vec()).collect();
            for rank in 0..world {
                sent[rank] += messages[rank].len();
                let (hop, from) = (schedules[rank][h], predecessor(rank, world));
                assert_eq!(schedules[from][h].send_chunk, hop.recv_chunk);
                assert_eq!(schedules[from][h].phase, hop.phase);
                for (mine, theirs) in state[rank][chunk(length, world, hop.recv_chunk)].iter_mut().zip(&messages[from]) {
                    match hop.phase {
                        Phase::ReduceScatter => *mine += theirs,
                        Phase::AllGather => *mine = *theirs,
                    }
                }
            }
        }
        (state, sent)
    }

    #[test]
    fn every_world_and_length_ends_with_the_sum_and_the_same_bits_everywhere() {
        for world in 1..=16usize {
            for length in 0..=100usize {
                // Small integers: their sums are exact in any order.
                let exact: Vec<Vec<f32>> =
                    (0..world).map(|r| (0..length).map(|i| ((r * 31 + i * 7) % 101) as f32 - 50.0).collect()).collect();
                let (states, sent) = simulate(&exact);
                let sum: Vec<f32> = (0..length).map(|i| exact.iter().map(|x| x[i]).sum()).collect();
                assert!(states.iter().all(|s| *s == sum), "world {world}, length {length}");

                let share = 2 * (world - 1) * length;
                assert_eq!(sent.iter().sum::<usize>(), share);
                for &n in &sent {
                    // Two chunks are not sent; each is within one of its fair share.
                    assert!((n * world).abs_diff(share) <= 2 * world, "world {world}, length {length}: {n}");
                    if length % world == 0 {
                        assert_eq!(n * world, share);
                    }
                }

                let rough: Vec<Vec<f32>> = (0..world).map(|r| (0..length).map(|i| 1.0 / (1 + r * 17 + i) as f32).collect()).collect();
                let (states, _) = simulate(&rough);
                let bits = |s: &[f32]| s.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(states.iter().all(|s| bits(s) == bits(&states[0])), "world {world}, length {length}");
            }
        }
    }

    #[test]
    fn gathering_gives_every_rank_every_block_once() {
        for world in 1..=16usize {
            let schedules: Vec<_> = (0..world).map(|r| gather_hops(r, world)).collect();
            let mut has: Vec<Vec<bool>> = (0..world).map(|rank| (0..world).map(|block| block == rank).collect()).collect();
            for h in 0..world - 1 {
                let sent: Vec<usize> = schedules.iter().map(|hops| hops[h].send_chunk).collect();
                assert!(sent.iter().enumerate().all(|(rank, &block)| has[rank][block]), "a rank sends a block that it lacks");
                for rank in 0..world {
                    let block = schedules[rank][h].recv_chunk;
                    assert_eq!(block, sent[predecessor(rank, world)]);
                    assert!(!std::mem::replace(&mut has[rank][block], true), "block {block} comes twice to rank {rank}");
                }
            }
            assert!(has.iter().flatten().all(|has| *has), "world {world}");
        }
    }

    #[test]
    fn a_hop_sends_what_the_hop_before_received_and_one_hop_completes() {
        for world in 2..=16 {
            for rank in 0..world {
                let hops = hops(rank, world);
                assert_eq!(hops.len(), 2 * (world - 1));
                assert!(hops.windows(2).all(|w| w[1].send_chunk == w[0].recv_chunk));
                let completing: Vec<_> = hops.iter().filter(|h| h.completes).collect();
                assert_eq!(completing.len(), 1);
                assert_eq!(completing[0].phase, Phase::ReduceScatter);
                assert_eq!(completing[0].recv_chunk, successor(rank, world));
            }
        }
    }

    #[test]
    fn chunks_are_contiguous_and_complete() {
        for world in 1..20 {
            for length in 0..60 {
                let mut next = 0;
                for index in 0..world {
                    let part = chunk(length, world, index);
                    assert_eq!(part.start, next);
                    next = part.end;
                }
                assert_eq!(next, length);
            }
        }
    }
}
