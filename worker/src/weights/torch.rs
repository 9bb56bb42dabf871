//! Writes a state dict as torch.save does since PyTorch 1.6: a zip, nothing in it
//! compressed, of a pickle that describes the tensors (`data.pkl`) and of a file with the
//! bytes of each (`data/N`). See pytorch/torch/serialization.py, `_save`, and Python's
//! pickletools for the operations.

use std::io::{Cursor, Write};

use zip::write::{SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, result::ZipError};

use super::error::WeightsError;
use super::written::NamedTensor;

/// The folder inside the zip; PyTorch takes any.
const FOLDER: &str = "archive";
/// The version of the file's format.
const VERSION: &[u8] = b"3\n";
/// Where PyTorch has storages begin, so that they can be mapped into memory.
const ALIGNMENT: u16 = 64;

/// A .pth file, which `torch.load(weights_only=True)` reads as an OrderedDict.
///
/// # Errors
/// A tensor has more values than the format can say, or the zip cannot be written.
pub fn pth_bytes(tensors: &[NamedTensor]) -> Result<Vec<u8>, WeightsError> {
    let pickle = pickle(tensors)?;
    archive(&pickle, tensors).map_err(|e| WeightsError::Write(e.to_string()))
}

fn archive(pickle: &[u8], tensors: &[NamedTensor]) -> Result<Vec<u8>, ZipError> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(bytes.len() > u32::MAX as usize);
        zip.start_file(format!("{FOLDER}/{name}"), options)?;
        zip.write_all(bytes).map_err(ZipError::from)
    };
    add("data.pkl", pickle)?;
    add("byteorder", b"little")?;
    for (number, tensor) in tensors.iter().enumerate() {
        add(&format!("data/{number}"), bytemuck::cast_slice(&tensor.values))?;
    }
    add("version", VERSION)?;
    Ok(zip.finish()?.into_inner())
}

/// The operations of pickle that are used.
mod op {
    pub(super) const PROTOCOL_2: &[u8] = b"\x80\x02";
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const MARK: u8 = b'(';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const BININT: u8 = b'J';
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const STOP: u8 = b'.';
}

/// `OrderedDict()` with an item for each tensor.
fn pickle(tensors: &[NamedTensor]) -> Result<Vec<u8>, WeightsError> {
    let mut out = Pickle(op::PROTOCOL_2.to_vec());
    out.ordered_dict();
    out.op(op::MARK);
    for (number, tensor) in tensors.iter().enumerate() {
        out.text(&tensor.name)?;
        out.tensor(number, tensor)?;
    }
    out.op(op::SETITEMS);
    out.op(op::STOP);
    Ok(out.0)
}

struct Pickle(Vec<u8>);

impl Pickle {
    fn op(&mut self, op: u8) {
        self.0.push(op);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.op(op::GLOBAL);
        self.0.extend_from_slice(format!("{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) -> Result<(), WeightsError> {
        let length = u32::try_from(text.len()).map_err(|_| WeightsError::Write("a name has more than 4 GB".to_owned()))?;
        self.op(op::BINUNICODE);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn number(&mut self, number: usize) -> Result<(), WeightsError> {
        if let Ok(short) = i32::try_from(number) {
            self.op(op::BININT);
            self.0.extend_from_slice(&short.to_le_bytes());
            return Ok(());
        }
        let long = i64::try_from(number).map_err(|_| WeightsError::Write(format!("a tensor has {number} values")))?;
        self.op(op::LONG1);
        self.0.push(8);
        self.0.extend_from_slice(&long.to_le_bytes());
        Ok(())
    }

    fn numbers(&mut self, numbers: impl IntoIterator<Item = usize>) -> Result<(), WeightsError> {
        self.op(op::MARK);
        numbers.into_iter().try_for_each(|number| self.number(number))?;
        self.op(op::TUPLE);
        Ok(())
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.op(op::EMPTY_TUPLE);
        self.op(op::REDUCE);
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`, where the
    /// storage is the persistent id `("storage", FloatStorage, number, "cpu", values)`.
    fn tensor(&mut self, number: usize, tensor: &NamedTensor) -> Result<(), WeightsError> {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.op(op::MARK);
        self.op(op::MARK);
        self.text("storage")?;
        self.global("torch", "FloatStorage");
        self.text(&number.to_string())?;
        self.text("cpu")?;
        self.number(tensor.values.len())?;
        self.op(op::TUPLE);
        self.op(op::BINPERSID);
        self.number(0)?;
        self.numbers(tensor.shape.iter().copied())?;
        self.numbers((1..=tensor.shape.len()).map(|axis| tensor.shape[axis..].iter().product()))?;
        self.op(op::NEWFALSE);
        self.ordered_dict();
        self.op(op::TUPLE);
        self.op(op::REDUCE);
        Ok(())
    }
}
