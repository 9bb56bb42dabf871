//! Length-prefixed rkyv messages: a little-endian u32, then that many bytes,
//! validated by bytecheck before use. It knows no message type.
//!
//! The size of a frame from the network is checked before memory is allocated for it,
//! and the memory grows with what has really arrived.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Memory grows by at least this many bytes at a time.
const GROWTH: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the stream failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the stream ended in the middle of a message: {got} of {expected} bytes had arrived")]
    Truncated { got: usize, expected: usize },
    #[error("a message of {length} bytes was announced, more than the {max} allowed here")]
    TooLong { length: usize, max: usize },
    #[error("a message of {length} bytes is not a valid `{kind}`: {problem}")]
    Invalid { kind: &'static str, length: usize, problem: String },
    #[error("a `{kind}` could not be encoded: {problem}")]
    Encode { kind: &'static str, problem: String },
}

/// Writes one message. The stream is not flushed or finished.
pub async fn write_message<W, T>(writer: &mut W, message: &T) -> Result<(), WireError>
where
    W: AsyncWrite + Unpin,
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let kind = std::any::type_name::<T>();
    let body = rkyv::to_bytes::<rancor::Error>(message).map_err(|problem| WireError::Encode { kind, problem: problem.to_string() })?;
    let length = u32::try_from(body.len())
        .map_err(|_| WireError::Encode { kind, problem: format!("{} bytes do not fit in a frame", body.len()) })?;
    writer.write_all(&length.to_le_bytes()).await?;
    writer.write_all(&body).await?;
    Ok(())
}

/// Reads one message of at most `max` bytes; `None` where the stream ends
/// before one begins.
pub async fn read_message<T>(reader: &mut (impl AsyncRead + Unpin), max: usize) -> Result<Option<T>, WireError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let Some(body) = read_frame(reader, max).await? else { return Ok(None) };
    rkyv::from_bytes::<T, rancor::Error>(&body).map(Some).map_err(|problem| WireError::Invalid {
        kind: std::any::type_name::<T>(),
        length: body.len(),
        problem: problem.to_string(),
    })
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin), max: usize) -> Result<Option<AlignedVec>, WireError> {
    let mut prefix = [0; 4];
    match fill(reader, &mut prefix).await? {
        4 => {}
        0 => return Ok(None),
        got => return Err(WireError::Truncated { got, expected: 4 }),
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > max {
        return Err(WireError::TooLong { length, max });
    }
    let mut body = AlignedVec::new();
    while body.len() < length {
        let start = body.len();
        body.resize(length.min(start + start.max(GROWTH)), 0);
        let wanted = body.len() - start;
        let got = fill(reader, &mut body[start..]).await?;
        if got < wanted {
            return Err(WireError::Truncated { got: start + got, expected: length });
        }
    }
    Ok(Some(body))
}

/// Reads until `place` is full or the stream ends; returns how much was read.
async fn fill(reader: &mut (impl AsyncRead + Unpin), place: &mut [u8]) -> Result<usize, WireError> {
    let mut got = 0;
    while got < place.len() {
        match reader.read(&mut place[got..]).await? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::seed;
    use rand_chacha::rand_core::RngCore;

    #[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
    enum Sample {
        Empty,
        Text { id: u64, text: String },
        List(Vec<Option<String>>),
    }

    fn samples() -> Vec<Sample> {
        let list = (0..200).map(|i| (i % 3 > 0).then(|| "x".repeat(i * 10))).collect();
        vec![Sample::Empty, Sample::Text { id: u64::MAX, text: "a worker joined".to_owned() }, Sample::List(list)]
    }

    async fn framed(messages: &[Sample]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            write_message(&mut bytes, message).await.unwrap();
        }
        bytes
    }

    #[tokio::test]
    async fn messages_arrive_as_sent_until_a_clean_end() {
        let bytes = framed(&samples()).await;
        // A pipe smaller than a message, so that reads return parts.
        let (mut near, mut far) = tokio::io::duplex(64);
        let sending = tokio::spawn(async move { near.write_all(&bytes).await.unwrap() });
        for expected in samples() {
            assert_eq!(read_message::<Sample>(&mut far, 1 << 20).await.unwrap(), Some(expected));
        }
        sending.await.unwrap();
        assert!(read_message::<Sample>(&mut far, 1 << 20).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_message_cut_anywhere_is_an_error() {
        for message in samples() {
            let bytes = framed(&[message]).await;
            for cut in (1..bytes.len()).step_by(1 + bytes.len() / 300) {
                let result = read_message::<Sample>(&mut &bytes[..cut], 1 << 20).await;
                assert!(matches!(result, Err(WireError::Truncated { .. })), "{cut} bytes: {result:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_announced_length_over_the_bound_is_refused_before_any_memory_is_taken() {
        for length in [1025u32, 1 << 30, u32::MAX] {
            let result = read_message::<Sample>(&mut &length.to_le_bytes()[..], 1024).await;
            assert!(matches!(result, Err(WireError::TooLong { max: 1024, .. })), "{result:?}");
        }
        // Within the bound, but no bytes follow: an error, and no 4 GiB are allocated.
        let result = read_message::<Sample>(&mut &u32::MAX.to_le_bytes()[..], usize::MAX).await;
        assert!(matches!(result, Err(WireError::Truncated { got: 0, .. })), "{result:?}");
    }

    #[tokio::test]
    async fn random_and_damaged_bytes_never_panic() {
        let mut refused = 0;
        for case in 0..3000u64 {
            let mut rng = seed::stream(case, "damage", &[]);
            let mut bytes = if case % 2 == 0 {
                let mut body = vec![0; rng.next_u32() as usize % 200];
                rng.fill_bytes(&mut body);
                let length = body.len() as u32;
                [&length.to_le_bytes()[..], &body].concat()
            } else {
                framed(&samples()[case as usize % 3..][..1]).await
            };
            for _ in 0..1 + rng.next_u32() % 4 {
                let at = rng.next_u32() as usize % bytes.len();
                if at >= 4 {
                    bytes[at] ^= 1 << (rng.next_u32() % 8);
                }
            }
            refused += usize::from(read_message::<Sample>(&mut &bytes[..], 1 << 20).await.is_err());
        }
        assert!(refused > 1000, "only {refused} damaged frames were refused");
    }
}
