//! Commands that change what is loaded.

use std::path::PathBuf;

use cli::{Exit, Many, Out, PathText, Problem};
use kernel::Dir;
use kernel::bpf::scope as kernel_scope;
use kernel::bpf::{self, BpfError, Host, Object};
use kernel::features::{Feature, reliance};
use runtime::stores::watched;
use serde_json::json;

use super::problem::{of_bpf, of_ioctl, of_unload};
use super::{Load, Unload, open, scope_paths, stores_in};

/// What came of each feature.
#[derive(Default)]
struct Tally {
    done: u64,
    failed: Vec<Problem>,
}

impl Tally {
    /// One failure speaks for itself; with several each is reported. Partly, if something was done all the same.
    fn end(mut self, out: &Out, verb: &'static str) -> Result<Exit, Problem> {
        if self.done == 0 && self.failed.len() == 1 {
            return self.failed.pop().map_or(Ok(Exit::Bug), Err);
        }
        out.summary(&json!({ verb: self.done }), || {
            format!("{} {verb}", Many(self.done, "feature", "features"))
        });
        self.failed.iter().for_each(|problem| out.error(problem));
        Ok(match (self.done, self.failed.first()) {
            (_, None) => Exit::Done,
            (0, Some(first)) => first.exit_code(),
            (_, Some(_)) => Exit::Partly,
        })
    }
}

/// The features asked for that are built in.
fn objects(asked: &[Feature]) -> Vec<(Feature, &'static Object)> {
    asked.iter().filter_map(|feature| Some((*feature, feature.object()?))).collect()
}

pub(crate) fn load(out: &Out, host: &Host, load: &Load) -> Result<Exit, Problem> {
    let asked = load.which.asked();
    let places =
        if asked.contains(&Feature::LinkInvert) { open(&scope_paths(&load.scope)?)? } else { vec![] };
    host.check().map_err(|error| of_bpf(&error))?;
    let mut tally = Tally::default();
    for (feature, object) in objects(&asked) {
        match load_one(out, host, feature, object, &places) {
            Ok(()) => tally.done += 1,
            Err(problem) => tally.failed.push(problem),
        }
    }
    tally.end(out, "loaded")
}

fn load_one(
    out: &Out,
    host: &Host,
    feature: Feature,
    object: &'static Object,
    places: &[(PathBuf, Dir)],
) -> Result<(), Problem> {
    let loaded = bpf::load(host, object).map_err(|error| of_bpf(&error))?;
    if feature == Feature::LinkInvert {
        if let Err(problem) = add(out, places) {
            if !loaded.already {
                bpf::unload(host, object).map_err(|error| of_bpf(&error))?;
            }
            return Err(problem);
        }
        if places.is_empty() && !loaded.already {
            let problem = Problem::new("link-invert watches no file system yet");
            out.warn(&problem.cure("vkernel scope add with the directory that holds your guests"));
        }
    }
    show(out, feature, if loaded.already { "already" } else { "loaded" }, &loaded);
    Ok(())
}

fn show(out: &Out, feature: Feature, how: &str, loaded: &bpf::Loaded) {
    let value = json!({
        "feature": feature.name(),
        "how": how,
        "programs": loaded.attached,
        "left_out": loaded.left_out,
    });
    out.event("feature", &value, || {
        let programs = Many(loaded.attached.len() as u64, "program", "programs");
        let left = if loaded.left_out.is_empty() {
            String::new()
        } else {
            format!("; this kernel has no {}", loaded.left_out.join(", "))
        };
        match how {
            "already" => format!("{}: already loaded, {programs}", feature.name()),
            _ => format!("{}: {how}, {programs}{left}", feature.name()),
        }
    });
}

fn add(out: &Out, places: &[(PathBuf, Dir)]) -> Result<(), Problem> {
    for (path, dir) in places {
        kernel_scope::add(dir).map_err(|errno| of_ioctl(path, errno))?;
        out.event("scope", &json!({ "path": PathText::new(path), "in_scope": true }), || {
            format!("link-invert watches the file system of {}", PathText::new(path))
        });
    }
    Ok(())
}

pub(crate) fn reload(out: &Out, host: &Host, asked: &[Feature]) -> Result<Exit, Problem> {
    host.check().map_err(|error| of_bpf(&error))?;
    let all = asked.len() == Feature::ALL.len();
    let mut tally = Tally::default();
    for (feature, object) in objects(asked) {
        match bpf::reload(host, object) {
            Ok(loaded) => {
                show(out, feature, "reloaded", &loaded);
                tally.done += 1;
            }
            Err(BpfError::NotLoaded(_)) if all => {} // what was not loaded stays so
            Err(error) => tally.failed.push(of_bpf(&error)),
        }
    }
    tally.end(out, "reloaded")
}

pub(crate) fn unload(out: &Out, host: &Host, unload: &Unload) -> Result<Exit, Problem> {
    host.check().map_err(|error| of_bpf(&error))?;
    let asked = unload.which.asked();
    if !unload.force {
        let mut places = Vec::new();
        if asked.contains(&Feature::LinkInvert) {
            places = open(&scope_paths(&[])?)?;
            places.extend(watched().map_err(|errno| of_ioctl("/proc/self/mountinfo".as_ref(), errno))?);
        }
        let stores = stores_in(&places)?;
        if let Some(why) = asked.iter().find_map(|feature| reliance(host, *feature, &stores)) {
            return Err(of_bpf(&BpfError::InUse(why)));
        }
    }
    let all = unload.which.features.is_empty();
    let mut tally = Tally::default();
    // The last one first: it may rely on what was loaded before it.
    for (feature, object) in objects(&asked).into_iter().rev() {
        match bpf::unload(host, object) {
            Ok(()) => {
                let value = json!({ "feature": feature.name(), "how": "unloaded" });
                out.event("feature", &value, || format!("{}: unloaded", feature.name()));
                tally.done += 1;
            }
            Err(BpfError::NotLoaded(_)) if all => {}
            Err(error) => tally.failed.push(of_unload(&error)),
        }
    }
    tally.end(out, "unloaded")
}

pub(crate) fn grow(out: &Out, places: &[(PathBuf, Dir)]) -> Result<Exit, Problem> {
    add(out, places).map(|()| Exit::Done)
}

pub(crate) fn shrink(
    out: &Out,
    host: &Host,
    places: &[(PathBuf, Dir)],
    force: bool,
) -> Result<Exit, Problem> {
    if !force && let Some(why) = reliance(host, Feature::LinkInvert, &stores_in(places)?) {
        let problem = Problem::new(why).exit(Exit::Findings);
        return Err(problem.cure("vkernel scope remove --force, if it has to be"));
    }
    for (path, dir) in places {
        kernel_scope::remove(dir).map_err(|errno| of_ioctl(path, errno))?;
        out.event("scope", &json!({ "path": PathText::new(path), "in_scope": false }), || {
            format!("link-invert no longer watches the file system of {}", PathText::new(path))
        });
    }
    Ok(Exit::Done)
}
