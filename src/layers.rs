//! The table of layers, and the tests that hold every import to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules of the crate from the lowest layer to the highest. Each may import only from those
/// before it.
const LAYERS: [&str; 28] = [
    "base",
    "providers",
    "pg",
    "schema",
    "access",
    "catalog",
    "entry_point",
    "ledger",
    "outbox",
    "secrets",
    "payments",
    "plans",
    "usage",
    "reports",
    "limits",
    "alerts",
    "recharge",
    "posting",
    "contention",
    "settlement",
    "call",
    "purchases",
    "wallets",
    "gift_cards",
    "spending",
    "subscriptions",
    "webhooks",
    "install",
];

/// Collects the sources by the path of their module, as `ledger::store`.
fn sources(folder: &Path, module: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let path =
            |name: &str| [module, name].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("::");
        if entry.path().is_dir() {
            sources(&entry.path(), &path(&name), found);
        } else if let Some(stem) = name.strip_suffix(".rs").filter(|stem| !stem.ends_with("_tests") && *stem != "lib") {
            let text = fs::read_to_string(entry.path()).unwrap();
            let own = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            // The test reads only imports of the form `crate::`, so another form would escape it.
            // Macros that make modules may need one, inside.
            let is_relative = |line: &str| line.starts_with("use super::") || line.starts_with("use self::");
            assert!(!own.lines().any(is_relative), "{name}: say use crate::");
            found.insert(if stem == "mod" { module.to_owned() } else { path(stem) }, own);
        }
    }
}

/// The paths that a source names after `crate::`, with the braces of its use trees expanded.
fn imports(source: &str) -> BTreeSet<String> {
    let code: String = source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let mut paths = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let (mut prefixes, mut path) = (Vec::new(), String::new());
        for character in rest.chars() {
            match character {
                '{' => prefixes.push(path.clone()),
                ',' | '}' if !prefixes.is_empty() => {
                    paths.insert(path.clone());
                    if character == '}' {
                        prefixes.pop();
                    }
                    path = prefixes.last().cloned().unwrap_or_default();
                }
                ' ' if !prefixes.is_empty() => {}
                ':' | '_' | 'a'..='z' | 'A'..='Z' | '0'..='9' => path.push(character),
                _ => break,
            }
        }
        paths.insert(path);
    }
    paths
}

/// The modules that each module imports, each by the longest path that is a module.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    all.remove("layers");
    let module = |path: &str| {
        let parts: Vec<_> = path.split("::").collect();
        (1..=parts.len()).rev().map(|n| parts[..n].join("::")).find(|name| all.contains_key(name))
    };
    let imported = |name: &String, source: &String| {
        let own: BTreeSet<_> = imports(source).iter().filter_map(|path| module(path)).collect();
        // A `mod.rs` names its children to declare them, which is no import and would make a
        // circle.
        own.into_iter().filter(|other| other != name && !other.starts_with(&format!("{name}::"))).collect()
    };
    all.iter().map(|(name, source)| (name.clone(), imported(name, source))).collect()
}

#[test]
fn every_import_goes_down() {
    let rank = |module: &str| {
        let layer = module.split("::").next().unwrap();
        LAYERS.iter().position(|known| *known == layer).unwrap_or_else(|| panic!("{layer} stands in no layer"))
    };
    let graph = graph();
    let climbs = graph.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to)));
    let climbs: Vec<_> = climbs.filter(|(from, to)| rank(to) > rank(from)).collect();
    assert!(graph.len() > 80 && climbs.is_empty(), "{climbs:?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut left = graph();
    // Modules that import nothing that is left are taken away until none is: what stays is in a
    // circle, or imports one.
    loop {
        let free = left.iter().filter(|(_, all)| !all.iter().any(|to| left.contains_key(to)));
        let free: BTreeSet<String> = free.map(|(name, _)| name.clone()).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|name, _| !free.contains(name));
    }
    assert!(left.is_empty(), "in or above a circle: {:?}", left.keys());
}
