//! Where the pictures of a set of Parquet files lie: the data pages of their column, and the
//! page, row and label of each.

use parquet::basic::{Repetition, Type as PhysicalType};
use parquet::schema::types::{ColumnDescPtr, ColumnDescriptor, ColumnPath, Type};
use rkyv::{Archive, Deserialize, Serialize};

use super::super::kept_index::{Index, LeftOut};
use super::pages::{Codec, MAX_PAGE_BYTES};

/// The pages of the pictures in one row group of one file.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Chunk {
    /// The number of its file in the set.
    pub(super) file: u32,
    /// The number of a [`Codec`].
    pub(super) codec: u8,
    /// The definition level of a value that is not null.
    pub(super) levels: u8,
    /// The dictionary's page: where it lies and its bytes, those of its header included.
    pub(super) dictionary: Option<(u64, u32)>,
}

/// One data page.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct PagePlace {
    pub(super) offset: u64,
    /// Those of its header included.
    pub(super) bytes: u32,
    pub(super) chunk: u32,
    /// Its first row, counted from the file's first.
    pub(super) first_row: u32,
    pub(super) rows: u32,
}

/// One picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) page: u32,
    /// Counted from the page's first.
    pub(super) row: u32,
    pub(super) label: u32,
}

/// The pictures of a set of files, in the order in which they lie there.
#[derive(Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct ParquetIndex {
    pub(super) chunks: Vec<Chunk>,
    pub(super) pages: Vec<PagePlace>,
    pub(super) rows: Vec<Row>,
    /// The names of classes, where the files say them, or have texts for labels.
    pub(super) classes: Option<Vec<String>>,
    /// Rows without picture or label.
    pub(super) left_out: LeftOut,
}

impl Index for ParquetIndex {
    const KEPT: (&str, u32) = ("parquet", 1);

    fn is_sound(&self, files: usize) -> bool {
        let chunk = |chunk: &Chunk| (chunk.file as usize) < files && Codec::numbered(chunk.codec).is_some() && chunk.levels <= 2;
        let page = |page: &PagePlace| {
            (page.chunk as usize) < self.chunks.len()
                && page.bytes as usize <= MAX_PAGE_BYTES
                && page.first_row.checked_add(page.rows).is_some()
        };
        let row = |row: &Row| self.pages.get(row.page as usize).is_some_and(|page| row.row < page.rows);
        let named = |classes: &Vec<String>| self.rows.iter().all(|row| (row.label as usize) < classes.len());
        self.chunks.iter().all(chunk) && self.pages.iter().all(page) && self.rows.iter().all(row) && self.classes.as_ref().is_none_or(named)
    }
}

impl ParquetIndex {
    pub(super) fn chunk_of(&self, page: u32) -> &Chunk {
        &self.chunks[self.pages[page as usize].chunk as usize]
    }
}

impl Chunk {
    pub(super) fn codec(&self) -> Codec {
        Codec::numbered(self.codec).unwrap_or(Codec::None)
    }

    /// What the decoders need to know of the column.
    pub(super) fn column(&self) -> Result<ColumnDescPtr, String> {
        let repetition = if self.levels == 0 { Repetition::REQUIRED } else { Repetition::OPTIONAL };
        let of_bytes = Type::primitive_type_builder("bytes", PhysicalType::BYTE_ARRAY).with_repetition(repetition).build();
        let of_bytes = of_bytes.map_err(|e| e.to_string())?;
        Ok(ColumnDescriptor::new(of_bytes.into(), self.levels.into(), 0, ColumnPath::new(vec!["bytes".to_owned()])).into())
    }
}
