//! Which columns hold pictures and labels: what the `datasets` library of Hugging Face
//! writes about its features into the footer, the usual names, or the keys of the config.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType};
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::{ColumnDescPtr, Type};

/// The names that columns have where nothing else says what they are.
const IMAGES: [&str; 2] = ["image", "img"];
const LABELS: [&str; 3] = ["label", "labels", "fine_label"];

/// The columns that a config names.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::dataset) struct Named<'a> {
    pub image: Option<&'a str>,
    pub label: Option<&'a str>,
}

/// A column without nested columns: its number among those of the file.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) name: String,
    pub(super) number: usize,
    pub(super) column: ColumnDescPtr,
}

/// Where a file has pictures and labels.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) image: Leaf,
    pub(super) label: Leaf,
    /// Whether labels are texts, and not numbers.
    pub(super) texts: bool,
    /// The names of classes, where the file says them.
    pub(super) classes: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Image,
    Label,
}

impl Use {
    fn key(self) -> &'static str {
        match self {
            Self::Image => "data.image",
            Self::Label => "data.label",
        }
    }

    /// What the features of Hugging Face call it.
    fn feature(self) -> &'static str {
        match self {
            Self::Image => "Image",
            Self::Label => "ClassLabel",
        }
    }

    fn usual(self) -> &'static [&'static str] {
        match self {
            Self::Image => &IMAGES,
            Self::Label => &LABELS,
        }
    }

    fn needed(self) -> &'static str {
        match self {
            Self::Image => "pictures (binary, or {bytes: binary, path: string})",
            Self::Label => "labels (integers or texts)",
        }
    }

    /// The path of the column below a field that can be used so.
    fn path(self, field: &Type) -> Option<Vec<&str>> {
        if is_repeated(field) {
            return None;
        }
        match self {
            Self::Image if field.is_primitive() => is_binary(field).then(|| vec![field.name()]),
            Self::Image => {
                let bytes = field.get_fields().iter().find(|inner| inner.name() == "bytes")?;
                (is_binary(bytes) && !is_repeated(bytes)).then(|| vec![field.name(), "bytes"])
            }
            Self::Label => (is_integer(field) || is_text(field)).then(|| vec![field.name()]),
        }
    }
}

fn is_repeated(field: &Type) -> bool {
    field.get_basic_info().has_repetition() && field.get_basic_info().repetition() == Repetition::REPEATED
}

fn is_binary(field: &Type) -> bool {
    field.is_primitive() && field.get_physical_type() == PhysicalType::BYTE_ARRAY && !is_text(field)
}

fn is_text(field: &Type) -> bool {
    let about = field.get_basic_info();
    field.is_primitive()
        && field.get_physical_type() == PhysicalType::BYTE_ARRAY
        && (matches!(about.logical_type_ref(), Some(LogicalType::String | LogicalType::Enum))
            || matches!(about.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM))
}

/// Times and decimal fractions lie in the same physical types.
fn is_integer(field: &Type) -> bool {
    let about = field.get_basic_info();
    field.is_primitive()
        && matches!(field.get_physical_type(), PhysicalType::INT32 | PhysicalType::INT64)
        && matches!(about.logical_type_ref(), None | Some(LogicalType::Integer { .. }))
        && matches!(
            about.converted_type(),
            ConvertedType::NONE
                | ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::INT_64
                | ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64
        )
}

/// Finds both columns. The error says what is lacking, and which columns there are.
pub(super) fn find(metadata: &ParquetMetaData, named: Named) -> Result<Columns, String> {
    let features = features(metadata);
    let image = choose(metadata, &features, Use::Image, named.image)?;
    let label = choose(metadata, &features, Use::Label, named.label)?;
    let texts = label.column.physical_type() == PhysicalType::BYTE_ARRAY;
    let classes = features.as_ref().and_then(|features| names(features, &label.name)).filter(|_| !texts);
    Ok(Columns { image, label, texts, classes })
}

/// What Hugging Face's library says of the columns, by their names.
fn features(metadata: &ParquetMetaData) -> Option<serde_json::Value> {
    let entries = metadata.file_metadata().key_value_metadata()?;
    let text = entries.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
    let mut parsed: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(parsed.get_mut("info")?.get_mut("features")?.take())
}

/// The names of a feature's classes.
fn names(features: &serde_json::Value, label: &str) -> Option<Vec<String>> {
    let feature = features.get(label)?;
    if feature.get("_type")?.as_str()? != Use::Label.feature() {
        return None;
    }
    feature.get("names")?.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

fn choose(metadata: &ParquetMetaData, features: &Option<serde_json::Value>, for_use: Use, named: Option<&str>) -> Result<Leaf, String> {
    let schema = metadata.file_metadata().schema_descr();
    let fields = schema.root_schema().get_fields();
    let there = || format!("its columns are {}", fields.iter().map(|field| described(field, 1)).collect::<Vec<_>>().join(", "));
    let (key, needed) = (for_use.key(), for_use.needed());
    let field = match named {
        Some(name) => match fields.iter().find(|field| field.name() == name) {
            Some(field) => field,
            None => return Err(format!("has no column `{name}`, which {key} names: {}", there())),
        },
        None => {
            let is_feature = |field: &&&Type| {
                let feature = features.as_ref().and_then(|features| features.get(field.name()));
                feature.and_then(|feature| feature.get("_type")).is_some_and(|kind| kind == for_use.feature())
            };
            let all: Vec<&Type> = fields.iter().map(|field| &**field).collect();
            let mut fit: Vec<&Type> = all.iter().filter(is_feature).copied().collect();
            if fit.len() != 1 {
                let among = if fit.is_empty() { &all } else { &fit };
                let usual: Vec<&Type> = among.iter().filter(|field| for_use.usual().contains(&field.name())).copied().collect();
                if usual.len() == 1 || fit.is_empty() {
                    fit = usual;
                }
            }
            match fit[..] {
                [one] => one,
                [] => return Err(format!("has no column that is known to hold {needed}: name one with {key}; {}", there())),
                _ => {
                    let names: Vec<String> = fit.iter().map(|field| format!("`{}`", field.name())).collect();
                    return Err(format!(
                        "has several columns that may hold {needed}, {}: choose with {key}; {}",
                        names.join(" and "),
                        there()
                    ));
                }
            }
        }
    };
    let Some(path) = for_use.path(field) else {
        let problem = format!("has a column `{}` of the type {}, where {needed} are needed", field.name(), type_of(field, 1));
        return Err(format!("{problem}: name another with {key}; {}", there()));
    };
    let number = schema.columns().iter().position(|column| column.path().parts() == path && column.max_rep_level() == 0);
    let number = number.ok_or_else(|| format!("has a damaged schema: it lacks the column `{}`", path.join(".")))?;
    Ok(Leaf { name: field.name().to_owned(), number, column: schema.column(number) })
}

/// Columns that an error lists, and levels of nested ones that it shows.
const DEPTH: u32 = 4;

fn described(field: &Type, depth: u32) -> String {
    format!("{}: {}", field.name(), type_of(field, depth))
}

/// A type as people write it.
fn type_of(field: &Type, depth: u32) -> String {
    let about = field.get_basic_info();
    let name = if field.is_group() {
        match about.converted_type() {
            ConvertedType::LIST => "list".to_owned(),
            ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => "map".to_owned(),
            _ if depth >= DEPTH => "{...}".to_owned(),
            _ => format!("{{{}}}", field.get_fields().iter().map(|inner| described(inner, depth + 1)).collect::<Vec<_>>().join(", ")),
        }
    } else if is_text(field) {
        "string".to_owned()
    } else if is_binary(field) {
        "binary".to_owned()
    } else {
        match (about.logical_type_ref(), about.converted_type()) {
            (Some(LogicalType::Integer { .. }) | None, ConvertedType::NONE) => format!("{:?}", field.get_physical_type()).to_lowercase(),
            (Some(logical), ConvertedType::NONE) => format!("{logical:?}").to_lowercase(),
            (_, converted) => format!("{converted:?}").to_lowercase(),
        }
    };
    if is_repeated(field) { format!("list of {name}") } else { name }
}
