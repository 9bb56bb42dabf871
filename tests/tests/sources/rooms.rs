//! The dependencies between the sources: no two files import from each other,
//! directly or indirectly, and within a crate no top-level module ("room") imports
//! from a later one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cluster_tests::project;
use syn::visit::Visit;

use crate::tidy::{collect, read};

/// The path of a module below the crate's root, which is the empty path.
type Module = Vec<String>;

/// Every file of a crate outside tests, and the modules that it imports from.
fn imports(krate: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let files = files(&project().join(krate).join("src"));
    assert!(files.len() > 10, "{krate} has only {} files", files.len());
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    let of = |(module, file): (&Module, &syn::File)| {
        let mut found = Imports { module, modules: &modules, found: BTreeSet::new() };
        found.visit_file(file);
        found.found.remove(module);
        (module.clone(), found.found)
    };
    files.iter().map(of).collect()
}

/// The files of a crate below `root`, without the modules that are declared only for
/// tests.
fn files(root: &Path) -> BTreeMap<Module, syn::File> {
    let mut paths = Vec::new();
    collect(root, &mut paths);
    let mut files = BTreeMap::new();
    for path in paths {
        let inside = path.strip_prefix(root).unwrap_or(&path).with_extension("");
        let mut module: Module = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        if module != ["main"] {
            files.insert(module, parse(&path));
        }
    }
    let declared: Vec<Module> = files.iter().flat_map(|(module, file)| for_tests(module, file)).collect();
    files.retain(|module, _| !declared.iter().any(|test| module.starts_with(test)));
    files
}

fn parse(path: &Path) -> syn::File {
    syn::parse_file(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn for_tests(module: &Module, file: &syn::File) -> Vec<Module> {
    let named = |item: &syn::Item| match item {
        syn::Item::Mod(m) if is_for_tests(&m.attrs) => Some([module.as_slice(), &[m.ident.to_string()]].concat()),
        _ => None,
    };
    file.items.iter().filter_map(named).collect()
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    let only =
        |a: &syn::Attribute| a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|word| word == "test" || word == "fuzzing");
    attributes.iter().any(only)
}

struct Imports<'a> {
    module: &'a Module,
    modules: &'a BTreeSet<Module>,
    found: BTreeSet<Module>,
}

impl Imports<'_> {
    /// Adds the module that a path in this module names.
    fn add(&mut self, path: &[String]) {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let mut whole = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("self") => [self.module.as_slice(), &path[1..]].concat(),
            Some("super") => [&self.module[..self.module.len().saturating_sub(ups)], &path[ups..]].concat(),
            _ => [self.module.as_slice(), path].concat(),
        };
        // With fewer parts than this a path names no module of this crate, but
        // another crate or the prelude.
        let least = if path.first().is_some_and(|first| ["crate", "super"].contains(&first.as_str())) { 0 } else { self.module.len() + 1 };
        while whole.len() >= least {
            if self.modules.contains(&whole) {
                self.found.insert(whole);
                return;
            }
            if whole.pop().is_none() {
                return;
            }
        }
    }

    fn add_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(name) => self.add(&with(&name.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    /// The path in an item's visibility is no import.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.add(&parts);
        }
        syn::visit::visit_path(self, path);
    }
}

/// The chain of imports from `from` to `to`, if there is one.
fn way<'a>(
    graph: &'a BTreeMap<Module, BTreeSet<Module>>,
    from: &'a Module,
    to: &Module,
    seen: &mut BTreeSet<&'a Module>,
) -> Option<Vec<Module>> {
    for next in graph.get(from)? {
        if next == to {
            return Some(vec![from.clone(), next.clone()]);
        }
        if seen.insert(next)
            && let Some(rest) = way(graph, next, to, seen)
        {
            return Some([vec![from.clone()], rest].concat());
        }
    }
    None
}

#[test]
fn no_files_import_in_a_circle() {
    for krate in ["common", "worker", "coordinator"] {
        let graph = imports(krate);
        assert!(graph.values().map(BTreeSet::len).sum::<usize>() > graph.len(), "{krate}: the imports are not found");
        let circle = |module: &Module| {
            let around = way(&graph, module, module, &mut BTreeSet::new())?;
            Some(around.iter().map(|module| module.join("::")).collect::<Vec<_>>().join(" -> "))
        };
        let circles: Vec<String> = graph.keys().filter_map(circle).collect();
        assert!(circles.is_empty(), "{krate} imports in circles:\n{}", circles.join("\n"));
    }
}

/// lib.rs declares a crate's top-level modules in the order of their dependencies.
#[test]
fn rooms_build_on_those_before_them() {
    for krate in ["common", "worker", "coordinator"] {
        let file = parse(&project().join(krate).join("src/lib.rs"));
        let room = |item: &syn::Item| if let syn::Item::Mod(m) = item { Some(m.ident.to_string()) } else { None };
        let rooms: Vec<String> = file.items.iter().filter_map(room).collect();
        let place = |module: &Module| module.first().and_then(|first| rooms.iter().position(|room| room == first));
        let mut against = Vec::new();
        for (module, others) in imports(krate) {
            let later = others.iter().filter(|other| place(&module) < place(other));
            against.extend(later.map(|other| format!("{} imports from {}", module.join("::"), other.join("::"))));
        }
        assert!(against.is_empty(), "{krate}, against the order of its rooms:\n{}", against.join("\n"));
    }
}
