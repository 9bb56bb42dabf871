//! A tensor in a file, whose values are read when they are needed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use half::{bf16, f16};
use pytorch_reader::DType;
use safetensors::tensor::Dtype;

/// A tensor's shape, as the file has it, and the way to its values.
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    /// Of its numbers; the error is the name of another type.
    kind: Result<Kind, String>,
    place: Place,
}

/// Types of numbers that weights may have.
#[derive(Debug, Clone, Copy)]
enum Kind {
    F64,
    F32,
    F16,
    Bf16,
}

enum Place {
    Torch(pytorch_reader::Tensor),
    /// Bytes of a safetensors file.
    Bytes(Arc<File>, Range<u64>),
}

/// Why values cannot be read.
pub(super) enum Unreadable {
    /// Their type.
    Numbers(String),
    Io(io::Error),
}

impl Stored {
    pub(super) fn of_torch(tensor: pytorch_reader::Tensor) -> Self {
        let kind = match tensor.dtype() {
            DType::F64 => Ok(Kind::F64),
            DType::F32 => Ok(Kind::F32),
            DType::F16 => Ok(Kind::F16),
            DType::BF16 => Ok(Kind::Bf16),
            other => Err(format!("{other:?}")),
        };
        Self { shape: tensor.shape().to_vec(), kind, place: Place::Torch(tensor) }
    }

    /// `range` is in bytes of the file.
    pub(super) fn of_safetensors(file: &Arc<File>, dtype: Dtype, shape: &[usize], range: Range<u64>) -> Self {
        let kind = match dtype {
            Dtype::F64 => Ok(Kind::F64),
            Dtype::F32 => Ok(Kind::F32),
            Dtype::F16 => Ok(Kind::F16),
            Dtype::BF16 => Ok(Kind::Bf16),
            other => Err(format!("{other:?}")),
        };
        Self { shape: shape.to_vec(), kind, place: Place::Bytes(Arc::clone(file), range) }
    }

    /// Its values, row-major. f64 is rounded to f32.
    pub(super) fn read(&self) -> Result<Vec<f32>, Unreadable> {
        let kind = self.kind.as_ref().map_err(|name| Unreadable::Numbers(name.clone()))?;
        let bytes = match &self.place {
            Place::Torch(tensor) => tensor.read(),
            Place::Bytes(file, range) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start).map(|()| bytes)
            }
        };
        let bytes = bytes.map_err(Unreadable::Io)?;
        Ok(match kind {
            Kind::F32 => bytemuck::pod_collect_to_vec(&bytes),
            Kind::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            Kind::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Kind::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        })
    }
}
