//! Opens a file of weights: what it is, its first bytes say, not its name. Values are read
//! later. Of a pickle, nothing is executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pytorch_reader::{PytorchError, PytorchReader};
use safetensors::tensor::{Metadata, TensorInfo};
use zip::ZipArchive;

use super::error::WeightsError;
use super::names::{ORDER, OWN_ORDER, unwrapped};
use super::stored::Stored;

/// The largest header of a safetensors file, as its specification says.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes that tell formats apart: a tar's are at 257.
const HEAD: usize = 512;

/// How the weights of dense layers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DenseOrder {
    /// Ours.
    InOut,
    /// PyTorch's.
    OutIn,
}

/// An open file of weights.
pub struct WeightsFile {
    /// For messages: what the user named.
    pub(super) origin: PathBuf,
    pub(super) tensors: BTreeMap<String, Stored>,
    /// None if the file does not say it.
    pub(super) order: Option<DenseOrder>,
}

impl WeightsFile {
    /// Opens `path`: what torch.save wrote (a zip, or in the formats before it), or
    /// safetensors. `origin` names it in messages.
    ///
    /// # Errors
    /// The file cannot be read, is something else, or is damaged.
    pub fn open(path: &Path, origin: &Path) -> Result<Self, WeightsError> {
        let unreadable = |source| WeightsError::Read { path: origin.to_owned(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        let mut head = Vec::new();
        (&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
        let (tensors, order) = if is_safetensors(&head) {
            safetensors(file, origin)?
        } else if let Some(what) = something_else(&head, path) {
            return Err(WeightsError::Other { path: origin.to_owned(), what });
        } else {
            let reader = PytorchReader::new(path).map_err(|e| refused(e, origin))?;
            let tensors = reader.into_tensors().into_iter().map(|(name, tensor)| (name, Stored::of_torch(tensor)));
            (tensors.collect(), Some(DenseOrder::OutIn))
        };
        let tensors = unwrapped(tensors);
        if tensors.is_empty() {
            return Err(WeightsError::Other { path: origin.to_owned(), what: "a file without any tensors".to_owned() });
        }
        Ok(Self { origin: origin.to_owned(), tensors, order })
    }
}

/// What the reader of PyTorch's files says of one that it cannot read.
fn refused(error: PytorchError, origin: &Path) -> WeightsError {
    let path = origin.to_owned();
    match error {
        PytorchError::Io(source) if source.kind() != io::ErrorKind::UnexpectedEof && source.kind() != io::ErrorKind::InvalidData => {
            WeightsError::Read { path, source }
        }
        PytorchError::InvalidFormat(what) if what.starts_with("not a PyTorch checkpoint") => {
            WeightsError::Other { path, what: "neither what torch.save writes nor safetensors".to_owned() }
        }
        other => WeightsError::Damaged { path, problem: other.to_string() },
    }
}

/// A length below 100 MB and the brace of its JSON.
fn is_safetensors(head: &[u8]) -> bool {
    let length = head.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    length.is_some_and(|length| length <= MAX_HEADER) && head.get(8) == Some(&b'{')
}

type Found = (BTreeMap<String, Stored>, Option<DenseOrder>);

/// The tensors of a safetensors file.
fn safetensors(file: File, origin: &Path) -> Result<Found, WeightsError> {
    let damaged = |problem: String| WeightsError::Damaged { path: origin.to_owned(), problem };
    let unreadable = |source| WeightsError::Read { path: origin.to_owned(), source };
    let bytes = file.metadata().map_err(unreadable)?.len();
    let at = |range: std::ops::Range<u64>| {
        let mut part = vec![0; (range.end - range.start) as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, range.start).map(|()| part)
    };
    let length = at(0..8).map_err(unreadable)?;
    let length = length.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
    let begin = 8 + length;
    if begin > bytes {
        return Err(damaged(format!("its header has {length} bytes, and the file {bytes}")));
    }
    let header = at(8..begin).map_err(unreadable)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(e.to_string()))?;
    let expected = begin + metadata.data_len() as u64;
    if expected != bytes {
        return Err(damaged(format!("its header speaks of {expected} bytes, and it has {bytes}")));
    }
    let said = metadata.metadata().as_ref().and_then(|m| m.get(ORDER));
    let order = said.map(|order| if order == OWN_ORDER { DenseOrder::InOut } else { DenseOrder::OutIn });
    let file = Arc::new(file);
    let stored = |(name, info): (String, &TensorInfo)| {
        let (start, end) = info.data_offsets;
        let range = begin + start as u64..begin + end as u64;
        (name, Stored::of_safetensors(&file, info.dtype, &info.shape, range))
    };
    Ok((metadata.tensors().into_iter().map(stored).collect(), order))
}

/// What a file is that holds no weights which could be read; none if it may be PyTorch's.
fn something_else(head: &[u8], path: &Path) -> Option<String> {
    let starts = |with: &[u8]| head.starts_with(with);
    let text = String::from_utf8_lossy(head).trim_start().to_ascii_lowercase();
    let named = match () {
        () if head.is_empty() => "empty",
        () if starts(b"PK\x03\x04") => return archive(path),
        () if starts(b"\x89HDF") => "an HDF5 file, as Keras writes them",
        () if starts(b"\x93NUMPY") => "an array of NumPy",
        () if starts(b"\x1f\x8b") => "compressed by gzip",
        () if starts(b"GGUF") => "a GGUF file",
        () if head.get(4..8) == Some(b"TFL3") => "a model of TensorFlow Lite",
        () if text.starts_with("version https://git-lfs") => {
            "a pointer of Git LFS, not the file that it stands for (git lfs pull fetches that)"
        }
        () if text.starts_with("<!doctype") || text.starts_with("<html") => "a web page: the download went wrong",
        () if path.extension().is_some_and(|e| e == "onnx") => "an ONNX model, which is only written here",
        () => return None,
    };
    Some(named.to_owned())
}

/// What a zip is, unless it is PyTorch's.
fn archive(path: &Path) -> Option<String> {
    // What is wrong with a damaged zip, PyTorch's reader says.
    let archive = ZipArchive::new(File::open(path).ok()?).ok()?;
    let any = |test: &dyn Fn(&str) -> bool| archive.file_names().any(|name| name.is_ok_and(|name| test(&name)));
    if any(&|name| name.contains("/code/")) {
        return Some("a TorchScript program (torch.jit.save): save its state_dict() with torch.save".to_owned());
    }
    if any(&|name| name.ends_with("data.pkl")) {
        return None;
    }
    Some(if any(&|name| name.ends_with(".npy")) { "arrays of NumPy (.npz)" } else { "a zip without the weights of a model" }.to_owned())
}
