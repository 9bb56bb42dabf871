//! One process of `worker bench ring`.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use common::config::WireEncoding;
use common::net::{Authority, Endpoint, Role, Route, worker_name};
use common::ring::{Bucket, BucketLayout, Gathers, Ring, RingPeer, RingSpec, STATISTICS, Values};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Builder;

use super::load::{Assignment, Round};
use crate::cluster::supervised::end_with_stdin;

/// Rounds that are not counted, in which packets grow and memory is allocated.
const WARM_UP: u64 = 2;
/// How long other ranks may be silent: long, because a busy machine may delay them.
const RING_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs the assignment read from stdin; ends when stdin closes.
///
/// # Errors
/// The ring broke, or summed wrongly.
pub(in crate::bench) fn run() -> Result<()> {
    let Assignment { authority, rank, load } = read()?;
    let runtime = match load.threads {
        1 => Builder::new_current_thread().enable_all().build()?,
        threads => Builder::new_multi_thread().worker_threads(threads as usize).enable_all().build()?,
    };
    let name = |rank: u32| worker_name(u64::from(rank));
    let identity = Authority::open(&authority)?.identity(&name(rank))?;
    let route = load.packet.map(|packet| Route::Network { packet });
    let endpoint = {
        let _inside = runtime.enter();
        Endpoint::bind_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &identity, Role::Worker, route)?
    };
    write(&endpoint.local_addr()?)?;
    let addresses: Vec<SocketAddr> = read()?;
    end_with_stdin()?;
    let layout = BucketLayout::new(load.elements() as usize, load.bucket_bytes as usize);
    let spec = RingSpec {
        generation: 1,
        rank,
        peers: (0..).zip(addresses).map(|(rank, addr)| RingPeer { rank, name: name(rank), addresses: vec![addr] }).collect(),
        layout,
        encoding: load.wire.into(),
        gathers: Gathers::default(),
        connections: load.connections,
        timeout: RING_TIMEOUT,
        form_within: RING_TIMEOUT,
        reach_within: RING_TIMEOUT,
    };
    let mut ring = runtime.block_on(Ring::form(&endpoint, spec))?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = std::thread::Builder::new().name("ring".to_owned()).spawn(move || runtime.block_on(stopped))?;
    // As in training, a gradient that travels as bf16 is kept as bf16.
    let compact = load.wire == WireEncoding::Bf16;
    let mut gradient: Vec<Values> = (0..layout.len()).map(|b| Values::zeros(compact, layout.range(b).len())).collect();
    let mut rounds = Vec::new();
    for round in 0..WARM_UP + load.rounds {
        gradient.iter_mut().for_each(|bucket| bucket.fill(1.0));
        rounds.push(reduce(&mut ring, round, &mut gradient)?);
        let mut right = true;
        gradient.iter().for_each(|bucket| bucket.span().for_each_f32(|values| right &= values.iter().all(|&v| v == load.world as f32)));
        if !right {
            bail!("the sum over {} ranks is wrong in round {round}", load.world);
        }
    }
    handle.block_on(ring.close());
    let _ = stop.send(());
    driver.join().map_err(|_| anyhow!("the ring's thread panicked"))?.ok();
    write(&rounds.split_off(WARM_UP as usize))
}

/// Sums the gradient over all ranks, once all of them have begun this round.
fn reduce(ring: &mut Ring, round: u64, gradient: &mut Vec<Values>) -> Result<Round> {
    let statistics = gradient.len();
    ring.submit(round, statistics, vec![0.0; STATISTICS])?;
    ring.wait(round, statistics)?;
    let (start, cpu) = (Instant::now(), cpu_time());
    let buckets = gradient.len();
    for (bucket, values) in gradient.drain(..).enumerate() {
        ring.submit(round, bucket, values)?;
    }
    for bucket in 0..buckets {
        gradient.push(ring.wait(round, bucket)?);
    }
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(Round { ms: ms(start.elapsed()), cpu_ms: ms(cpu_time().saturating_sub(cpu)) })
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn read<T: DeserializeOwned>() -> Result<T> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("could not read stdin")?;
    serde_json::from_str(&line).context("this command is one process of `worker bench ring`: run that instead")
}

fn write(message: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(message)?;
    writeln!(std::io::stdout(), "{line}").context("the parent process has ended")
}
