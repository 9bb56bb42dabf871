//! Makes the index of a set of files: footers, the places of the pages of pictures, and all
//! labels. Pictures are read only where the footer does not rule out that some are null.

use std::collections::HashMap;
use std::path::Path;

use parquet::basic::Type as PhysicalType;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::super::classes::{MAX_CLASSES, distinct, label_of};
use super::super::data_file::DataFile;
use super::super::source::{DatasetError, Fault, IndexProgress};
use super::chunk::{self, Places};
use super::columns::{self, Columns, Leaf, Named};
use super::footer::{self, Input};
use super::index::{Chunk, ParquetIndex, Row};
use super::pages::{self, Codec, MAX_PAGE_BYTES};

/// The index of these files.
pub(super) fn scan(files: &[DataFile], named: Named, progress: &dyn Fn(IndexProgress)) -> Result<ParquetIndex, DatasetError> {
    let mut scan = Scan::default();
    for (number, file) in (0u32..).zip(files) {
        let path = file.path();
        let scanned = file.with(|open| {
            let input = Input::of(open).map_err(DatasetError::io(path))?;
            let metadata = footer::read(path, &input)?;
            let columns = columns::find(&metadata, named).map_err(|problem| DatasetError::invalid(path, problem))?;
            scan.agrees(&columns).map_err(|problem| DatasetError::invalid(path, problem))?;
            scan.file(&Source { number, path, input, columns }, &metadata).map_err(|fault| fault.of(path))
        });
        scanned.map_err(DatasetError::io(path))??;
        progress(IndexProgress { files: u64::from(number) + 1 });
    }
    Ok(scan.finish())
}

/// The file that is being scanned, and its number in the set.
struct Source<'a> {
    number: u32,
    path: &'a Path,
    input: Input<'a>,
    columns: Columns,
}

/// The class of a row, of a text its number among those met so far; or why it has none.
type Label = Result<u32, &'static str>;

/// What is known so far.
#[derive(Default)]
struct Scan {
    index: ParquetIndex,
    /// Texts that are labels, in the order in which they were met.
    texts: HashMap<String, u32>,
    /// Whether labels are texts, in all files.
    of_texts: Option<bool>,
    /// The names of classes, in all files that say them.
    classes: Option<Vec<String>>,
}

impl Scan {
    /// Files of one set have labels of one kind, and the same classes.
    fn agrees(&mut self, columns: &Columns) -> Result<(), String> {
        if *self.of_texts.get_or_insert(columns.texts) != columns.texts {
            return Err("has texts for labels and other files have numbers, or the reverse".to_owned());
        }
        match (&self.classes, &columns.classes) {
            (Some(before), Some(here)) if before != here => {
                Err(format!("names {} classes that are not the {} of the files before it", here.len(), before.len()))
            }
            (None, Some(here)) => {
                self.classes = Some(here.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn file(&mut self, source: &Source, metadata: &ParquetMetaData) -> Result<(), Fault> {
        let columns = &source.columns;
        let mut first_row = 0u64;
        for (n, group) in metadata.row_groups().iter().enumerate() {
            // So that what is claimed costs no more memory than what is there.
            let rows = u64::try_from(group.num_rows()).unwrap_or(u64::MAX);
            if first_row.saturating_add(rows) > source.input.bytes.min(u32::MAX.into()) {
                return Err(Fault::Damaged(format!("claims more rows than {} bytes hold pictures", source.input.bytes)));
            }
            let of = |leaf: &Leaf| {
                let chunk = group.columns().get(leaf.number);
                chunk.ok_or_else(|| Fault::Damaged(format!("lacks the column `{}` in row group {n}", leaf.name)))
            };
            let within = |leaf: &Leaf, fault: Fault| match fault {
                Fault::Damaged(what) => {
                    Fault::Damaged(format!("has a column `{}` that cannot be read in row group {n}: {what}", leaf.name))
                }
                io => io,
            };
            let image = of(&columns.image)?;
            let mut places = Places {
                chunk: u32::try_from(self.index.chunks.len()).map_err(|_| Fault::Damaged("has too many row groups".to_owned()))?,
                first_row: first_row as u32,
                rows: rows as u32,
                pages: Vec::new(),
                dictionary: None,
            };
            let range = chunk::range(image, &source.input).map_err(|fault| within(&columns.image, fault))?;
            let page_index = metadata.page_index_for_row_group(n);
            let outcome = match page_index.page_locations(columns.image.number) {
                Some(locations) if !locations.is_empty() => places.by_index(range, locations),
                _ => places.by_headers(range, &source.input),
            };
            outcome.map_err(|fault| within(&columns.image, fault))?;
            let labels = self.labels(source, of(&columns.label)?, first_row as u32, rows as usize);
            let labels = labels.map_err(|fault| within(&columns.label, fault))?;
            self.rows(source, image, places, labels).map_err(|fault| within(&columns.image, fault))?;
            first_row += rows;
        }
        Ok(())
    }

    /// The labels of a row group that begins with this row of the file.
    fn labels(&mut self, source: &Source, chunk: &ColumnChunkMetaData, first_row: u32, rows: usize) -> Result<Vec<Label>, Fault> {
        let range = chunk::range(chunk, &source.input)?;
        let bytes = usize::try_from(range.end - range.start).ok().filter(|bytes| *bytes <= MAX_PAGE_BYTES);
        let bytes = bytes.ok_or_else(|| Fault::Damaged(format!("it has more than {MAX_PAGE_BYTES} bytes")))?;
        let codec = Codec::of(chunk.compression()).map_err(Fault::Damaged)?;
        let pages = chunk::pages_in(source.input.read(range.start, bytes)?.into(), codec, rows)?;
        let column = source.columns.label.column.clone();
        let classes = source.columns.classes.as_ref().map_or(MAX_CLASSES, Vec::len);
        let labels = match column.physical_type() {
            PhysicalType::INT32 => pages::values::<Int32Type>(column, pages, rows).and_then(|found| numbers(found, first_row, classes)),
            PhysicalType::INT64 => pages::values::<Int64Type>(column, pages, rows).and_then(|found| numbers(found, first_row, classes)),
            _ => pages::values::<ByteArrayType>(column, pages, rows)
                .and_then(|texts| texts.into_iter().map(|text| text.map_or(Ok(NO_LABEL), |text| self.text(&text).map(Ok))).collect()),
        };
        labels.map_err(|what| Fault::Damaged(format!("it {what}")))
    }

    /// The error is a predicate of the column.
    fn text(&mut self, text: &ByteArray) -> Result<u32, String> {
        let text = text.as_utf8().map_err(|_| "holds a text that is not UTF-8".to_owned())?;
        if let Some(&number) = self.texts.get(text) {
            return Ok(number);
        }
        if self.texts.len() >= MAX_CLASSES {
            return Err(format!("holds more than {MAX_CLASSES} different texts, which are no classes"));
        }
        let number = self.texts.len() as u32;
        self.texts.insert(text.to_owned(), number);
        Ok(number)
    }

    /// Takes up the rows of a row group.
    fn rows(&mut self, source: &Source, image: &ColumnChunkMetaData, places: Places, labels: Vec<Label>) -> Result<(), Fault> {
        let levels = source.columns.image.column.max_def_level();
        let chunk = Chunk {
            file: source.number,
            codec: Codec::of(image.compression()).map_err(Fault::Damaged)? as u8,
            levels: u8::try_from(levels).map_err(|_| Fault::Damaged("it is nested".to_owned()))?,
            dictionary: places.dictionary,
        };
        let no_nulls = levels == 0 || image.statistics().and_then(|statistics| statistics.null_count_opt()) == Some(0);
        let mut labels = labels.into_iter();
        for place in places.pages {
            let values = match no_nulls {
                true => None,
                false => Some(chunk::values(&chunk, &place, &|offset, bytes| source.input.read(offset, bytes))?),
            };
            let page = u32::try_from(self.index.pages.len()).map_err(|_| Fault::Damaged("it has too many pages".to_owned()))?;
            for (row, label) in (0..place.rows).zip(labels.by_ref()) {
                let has_picture = values.as_ref().is_none_or(|values| values[row as usize].is_some());
                let of_file = place.first_row + row;
                match if has_picture { label } else { Err("without a picture") } {
                    Ok(label) => self.index.rows.push(Row { page, row, label }),
                    Err(reason) => self.index.left_out.add(reason, || format!("{} row {of_file}", source.path.display())),
                }
            }
            self.index.pages.push(place);
        }
        self.index.chunks.push(chunk);
        if self.index.rows.len() > u32::MAX as usize {
            return Err(Fault::Damaged("it has too many rows".to_owned()));
        }
        Ok(())
    }

    /// Numbers the classes of texts in their order.
    fn finish(mut self) -> ParquetIndex {
        self.index.classes = self.classes;
        if self.of_texts == Some(true) {
            let classes = distinct(self.texts.keys().map(String::as_str));
            let mut numbers = vec![0; classes.len()];
            self.texts.iter().for_each(|(text, number)| numbers[*number as usize] = label_of(&classes, text));
            self.index.rows.iter_mut().for_each(|row| row.label = numbers[row.label as usize]);
            self.index.classes = Some(classes);
        }
        self.index
    }
}

const NO_LABEL: Label = Err("without a label");

/// Labels that are numbers below `classes`. The error is a predicate of the column.
fn numbers<N: Into<i64>>(values: Vec<Option<N>>, first_row: u32, classes: usize) -> Result<Vec<Label>, String> {
    let label = |(row, value): (u32, Option<N>)| match value.map(Into::into) {
        None => Ok(NO_LABEL),
        // As the library of Hugging Face writes it of test sets.
        Some(-1) => Ok(Err("with the label -1, which stands for none")),
        Some(number) => match u32::try_from(number) {
            Ok(label) if (label as usize) < classes => Ok(Ok(label)),
            _ => Err(format!("has the label {number} in row {row}, where a class from 0 to {} is needed", classes.saturating_sub(1))),
        },
    };
    (first_row..).zip(values).map(label).collect()
}
