//! No circle among the modules of a crate, by what their `use` lines say.
//!
//! A module's own ancestors do not count: that a child uses the trait of its `mod.rs`, which makes the child public, is how
//! a seam is laid out. Unit tests do not count either.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const CRATES: [&str; 7] = ["common", "coordinator", "meter", "worker", "serving", "cli", "tests"];

/// A module's path within its crate; the crate itself is empty.
type Module = Vec<String>;

/// The modules that are a file, with the paths that each uses: its own ones, and those that it makes public.
#[derive(Default)]
struct Crate {
    uses: BTreeMap<Module, Vec<(Vec<String>, bool)>>,
}

impl Crate {
    fn read(&mut self, folder: &Path, at: &Module) {
        for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let module = [at.clone(), vec![name.clone()]].concat();
            if path.is_dir() {
                self.read(&path, &module);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !name.ends_with("tests") {
                let module = if ["mod", "lib", "main"].contains(&name.as_str()) { at.clone() } else { module };
                self.uses.entry(module).or_default().extend(uses(&fs::read_to_string(&path).unwrap()));
            }
        }
    }

    /// The module that a path leads to from `from`, through what modules on the way make public; none outside the crate.
    fn target(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut at = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                from[..from.len().checked_sub(ups)?].to_vec()
            }
            "self" => from.clone(),
            child => {
                let module = [from.clone(), vec![child.to_owned()]].concat();
                self.uses.contains_key(&module).then_some(from.clone())?
            }
        };
        let rest = path.iter().skip_while(|part| ["crate", "super", "self"].contains(&part.as_str()));
        for part in rest {
            let child = [at.clone(), vec![part.clone()]].concat();
            if self.uses.contains_key(&child) {
                at = child;
                continue;
            }
            let made_public = self.uses.get(&at)?.iter().find(|(path, public)| *public && path.last() == Some(part));
            return match made_public {
                Some((path, _)) => self.target(&at, path),
                None => Some(at),
            };
        }
        Some(at)
    }

    /// The modules that each uses, but for its ancestors.
    fn edges(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of = |module: &Module, paths: &[(Vec<String>, bool)]| {
            let targets = paths.iter().filter_map(|(path, _)| self.target(module, path));
            targets.filter(|target| !module.starts_with(target)).collect()
        };
        self.uses.iter().map(|(module, paths)| (module, of(module, paths))).collect()
    }
}

/// The paths of the `use` lines before the unit tests, and whether each is made public.
fn uses(text: &str) -> Vec<(Vec<String>, bool)> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let mut found = Vec::new();
    for statement in code.join("\n").split(';') {
        let last = statement.rsplit_once("\nuse ").map(|(_, tree)| (tree, false));
        let public = ["\npub use ", "\npub(crate) use ", "\npub(super) use "];
        let public = public.iter().find_map(|begins| statement.rsplit_once(begins)).map(|(_, tree)| (tree, true));
        for (tree, public) in last.into_iter().chain(public) {
            found.extend(expand(tree).into_iter().map(|path| (path, public)));
        }
    }
    found
}

/// The paths of a tree such as `super::{a, b::{C, D as E}}`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let Some((before, inside)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()];
    };
    let inside = inside.rsplit_once('}').map_or("", |(inside, _)| inside);
    let (mut depth, mut branches) = (0, vec![String::new()]);
    for c in inside.chars() {
        match c {
            ',' if depth == 0 => branches.push(String::new()),
            c => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                branches.last_mut().unwrap().push(c);
            }
        }
    }
    let begins: Vec<String> = expand(before).concat();
    let branches = branches.iter().filter(|branch| !branch.trim().is_empty());
    branches.flat_map(|branch| expand(branch)).map(|path| [begins.clone(), path].concat()).collect()
}

/// Removes the modules that use nothing of what is left, or that nothing left uses, again and again: circles stay, and what
/// lies between them.
fn circles(mut edges: BTreeMap<&Module, BTreeSet<Module>>) -> Vec<String> {
    loop {
        let left: BTreeSet<Module> = edges.keys().map(|module| (*module).clone()).collect();
        let used: BTreeSet<Module> = edges.values().flatten().cloned().collect();
        edges.retain(|module, uses| used.contains(*module) && uses.iter().any(|used| left.contains(used)));
        if edges.len() == left.len() {
            break;
        }
    }
    let show = |(module, uses): (&&Module, &BTreeSet<Module>)| {
        let uses = uses.iter().filter(|used| edges.contains_key(used)).map(|used| used.join("::"));
        format!("{} uses {}", module.join("::"), uses.collect::<Vec<_>>().join(", "))
    };
    edges.iter().map(show).collect()
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for name in CRATES {
        let mut found = Crate::default();
        found.read(&root.join(name).join("src"), &Vec::new());
        assert!(found.uses.len() > 5, "the modules of {name} are found");
        let circles = circles(found.edges());
        assert!(circles.is_empty(), "{name}: modules use each other in a circle:\n  {}", circles.join("\n  "));
    }
}

#[test]
fn a_circle_is_found_also_through_what_a_module_makes_public() {
    let module =
        |path: &str| -> Module { path.split("::").map(str::to_owned).filter(|part| !part.is_empty()).collect() };
    let of = |files: &[(&str, &str)]| {
        let uses = files.iter().map(|(name, text)| (module(name), uses(&format!("\n{text}")))).collect();
        circles(Crate { uses }.edges())
    };
    let root = ("", "pub mod a;\npub use a::one::One;\n");
    let a = ("a", "mod one;\nmod two;\npub use one::One;\npub use two::Two;\n");
    let two = ("a::two", "use super::{One, Unknown};\nuse crate::b;\n");
    assert_eq!(of(&[root, a, two, ("a::one", "use std::fmt;\n"), ("b", "use crate::One;\n")]), Vec::<String>::new());
    let back = ("a::one", "use super::{\n    super::b::{self, B},\n    Two as Other,\n};\n");
    let found = of(&[root, a, two, back, ("b", "")]);
    assert!(
        found.contains(&"a::one uses a::two".to_owned()) && found.contains(&"a::two uses a::one".to_owned()),
        "{found:?}"
    );
}
