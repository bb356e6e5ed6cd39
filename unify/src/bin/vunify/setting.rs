//! Carrying out what was asked for: stores, sessions, runs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cli::{Count, Exit, Guests, Many, PathText, Problem};
use kernel::{Real, Seal};
use store::journal::{Batch, Journal, RunEnd};
use store::{Access, IdentityPolicy, Located, Place, Store};
use unify::packages::Packages;
use unify::policy::{Mtime, Policy};
use unify::protection::{Wish, choose, describe};
use unify::{
    Error, Guest, Judge, Scope, Selection, Session, Shareable, Surroundings, UNCONFINED, guests_of_run,
    recover, start,
};

use crate::{Setting, absolute};

impl Setting<'_> {
    fn open_store(&self, access: Access) -> Result<Store, Error> {
        let go_on = || !self.interrupt.requested();
        let wait: Option<&dyn Fn() -> bool> = if self.args.wait.wait { Some(&go_on) } else { None };
        let store = Store::open(&Real, self.located.path(), access, wait)?;
        if !start(&store, access, self.args.common.threads().get()) {
            self.out.debug(|| UNCONFINED);
        }
        Ok(store)
    }

    /// Where something is to be taken back there must be a store.
    fn check_store(&self) -> Result<(), Problem> {
        match &self.located {
            Located::Existing(_) => Ok(()),
            Located::Missing(path) => {
                let place = path.parent().unwrap_or(path).to_path_buf();
                Err(Error::from(store::Error::NoStore(place)).into())
            }
        }
    }

    /// The guests of the run that is to be undone, if none were named.
    pub(crate) fn roots_of_run(&self) -> Result<Vec<PathBuf>, Problem> {
        let Some(run) = self.args.run else { return Err(Error::NoGuest.into()) };
        self.check_store()?;
        let store = self.open_store(Access::Read)?;
        let journal = Journal::open_read_only(&store).map_err(Error::from)?;
        let unknown = Error::BadRun { run, why: "is not in the journal" };
        let guests = guests_of_run(&journal.ok_or(unknown)?, run)?;
        let roots = guests.iter().map(|guest| store.place().base().join(guest));
        let (there, gone): (Vec<_>, Vec<_>) = roots.partition(|root| root.is_dir());
        gone.iter().for_each(|root| self.out.warn(&Problem::new("a guest of the run is gone").at(root)));
        Ok(there)
    }

    /// The host's policy, and what it says of a guest below its own directory.
    fn policy_of(&self, root: &Path) -> Result<Policy, Error> {
        let below = Guests::from_env().base().canonicalize().is_ok_and(|base| root.parent() == Some(&base));
        let name = root.file_name().and_then(|name| name.to_str()).filter(|_| below);
        Ok(Policy::load(&self.args.policy, name)?)
    }

    /// Whether times must be equal is decided when a store is made: its objects' ids depend on it.
    fn identity(&self) -> Result<IdentityPolicy, Error> {
        let policy = Policy::load(&self.args.policy, None)?;
        Ok(match policy.options().mtime {
            Mtime::Keep => IdentityPolicy::Full,
            Mtime::Relax => IdentityPolicy::WithoutMtime,
        })
    }

    fn session<'a>(&self, around: &'a Surroundings<'a>, place: &'a Place) -> Result<Session<'a>, Error> {
        let judge = |guest: &Guest| {
            let root = guest.root.reopen().map_err(store::Error::at("open", &guest.path))?;
            Ok(Judge::new(root, Arc::new(self.policy_of(&guest.path)?)))
        };
        let mut session = Session::open(around, place, &self.roots, judge)?;
        if !self.args.packages.is_empty() {
            self.restrict(&mut session)?;
        }
        Ok(session)
    }

    /// The first guest is the reference: only packages that it and another guest have in the same version.
    fn restrict(&self, session: &mut Session<'_>) -> Result<(), Error> {
        let all: Vec<&Packages> = session.judges().iter().map(Judge::packages).collect();
        let (Some(reference), Some(path)) = (all.first(), self.roots.first()) else { return Ok(()) };
        if all.len() == 1 && !self.args.undo {
            return Err(Error::OnlyReference(path.clone()));
        }
        if !reference.has_database() {
            return Err(Error::NoDatabase(path.clone()));
        }
        let named = |name: &str| self.args.packages.iter().any(|wanted| wanted == "ALL" || wanted == name);
        for package in self.args.packages.iter().filter(|package| *package != "ALL") {
            if reference.find(package).next().is_none() {
                return Err(Error::NoPackage { guest: path.clone(), package: package.clone() });
            }
        }
        let common = |here: &Packages, there: &Packages| -> Vec<_> {
            let chosen = here.list().filter(|(id, package)| named(&package.name) && here.is_in(*id, there));
            chosen.map(|(id, _)| id).collect()
        };
        let mut selections = vec![Selection::new(if self.args.undo {
            common(reference, reference)
        } else {
            all[1..].iter().flat_map(|other| common(reference, other)).collect()
        })];
        selections.extend(all[1..].iter().map(|other| Selection::new(common(other, reference))));
        session.restrict(selections);
        Ok(())
    }

    pub(crate) fn unify(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        if self.args.dry.dry_run {
            return self.preview(around);
        }
        let place = Place::new(self.located.path()).map_err(Error::from)?;
        // Whatever can be wrong with the guests is found before anything is made.
        drop(self.session(around, &place)?);
        if matches!(self.located, Located::Missing(_)) {
            let sample = sample_in(&place)?;
            self.choose(&sample, place.base())?;
            Store::create(&Real, place.path(), self.identity()?).map_err(before_anything)?;
        }
        let store = self.open_store(Access::Write).map_err(before_anything)?;
        let seal = self.choose(store.sample(), store.path())?;
        let mut journal = self.recovered(around, &store).map_err(before_anything)?;
        let session = self.session(around, store.place())?;
        let result = session.unify(&store, &mut journal, seal, &command_line());
        let mut report = settle_now(around, &store, &mut journal, result)?;
        if self.args.reflink && report.end != Some(RunEnd::Interrupted) {
            self.session(around, store.place())?.reflink(&store, &mut report)?;
        }
        Ok(self.report(&report, Some(seal)))
    }

    fn wish(&self) -> Wish {
        Wish {
            noflags: self.args.noflags,
            immutable: self.args.immutable,
            mayunlink: self.args.immutable_mayunlink,
        }
    }

    /// The seal of the run; where there is none, every reason is told before the error.
    fn choose(&self, sample: &kernel::File, place: &Path) -> Result<Seal, Error> {
        choose(self.wish(), sample, place).inspect_err(|error| {
            if let Error::NoProtection { offers, .. } = error {
                offers.iter().for_each(|offer| self.out.warn(&Problem::new(describe(offer))));
            }
        })
    }

    /// A dry run needs no seal; the run itself would not begin without.
    fn warn_of_refusal(&self, place: &Place) {
        // Where no sample can be had, that is for the run to find out.
        if let Ok(sample) = sample_in(place)
            && let Err(error) = choose(self.wish(), &sample, place.base())
        {
            self.out.warn(&Problem::new(format!("the run itself would be refused: {error}")));
        }
    }

    fn preview(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        let mut planned = HashSet::new();
        let show = |batch: &Batch| {
            batch.actions.iter().for_each(|action| self.show(batch, action));
            planned.extend(batch.actions.iter().map(|action| action.ino));
        };
        let store = match self.located {
            Located::Existing(_) => Some(self.open_store(Access::Read)?),
            Located::Missing(_) => None,
        };
        let place = Place::new(self.located.path()).map_err(Error::from)?;
        let identity = store.as_ref().map_or_else(|| self.identity(), |store| Ok(store.format().identity))?;
        let session = self.session(around, &place)?;
        let mut report = session.preview(store.as_ref(), identity, show)?;
        if self.args.reflink {
            let session = self.session(around, &place)?;
            let show = |shareable: &Shareable| self.show_shareable(shareable);
            session.preview_reflink(store.as_ref(), &planned, &mut report, show)?;
        }
        if self.interrupt.requested() {
            return Err(Error::Interrupted.into());
        }
        self.warn_of_refusal(&place);
        Ok(self.report(&report, None))
    }

    pub(crate) fn undo(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        let paths = self.args.paths.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
        let scope = Scope { run: self.args.run, paths };
        self.check_store()?;
        if self.args.dry.dry_run {
            let store = self.open_store(Access::Read)?;
            let journal = Journal::open_read_only(&store).map_err(Error::from)?;
            let session = self.session(around, store.place())?;
            let show = |batch: &Batch| batch.actions.iter().for_each(|action| self.show(batch, action));
            let report = session.preview_undo(&store, journal.as_ref(), &scope, show)?;
            return Ok(self.report(&report, None));
        }
        let store = self.open_store(Access::Write).map_err(before_anything)?;
        let mut journal = self.recovered(around, &store).map_err(before_anything)?;
        let session = self.session(around, store.place())?;
        let result = session.undo(&store, &mut journal, &scope, &command_line());
        let report = settle_now(around, &store, &mut journal, result)?;
        Ok(self.report(&report, None))
    }

    /// Opens the journal and settles what an earlier run left behind.
    fn recovered(&self, around: &Surroundings<'_>, store: &Store) -> Result<Journal, Error> {
        let mut journal = Journal::open(store)?;
        let outcome = recover(around, store, &mut journal)?;
        if let Some(run) = outcome.run {
            self.out.line(|| {
                format!(
                    "run {run} was cut off: {} completed, {} taken back, {} removed",
                    Many(outcome.completed, "action", "actions"),
                    Count(outcome.taken_back),
                    Many(outcome.removed, "unused object", "unused objects")
                )
            });
        }
        outcome.warnings().for_each(|warning| self.out.warn(&warning));
        Ok(journal)
    }

    pub(crate) fn explain(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        let place = Place::new(self.located.path()).map_err(Error::from)?;
        let store = match self.located {
            Located::Existing(_) => Some(self.open_store(Access::Read)?),
            Located::Missing(_) => None,
        };
        let session = self.session(around, &place)?;
        for path in &self.args.explain {
            let answer = session.explain(store.as_ref(), &absolute(path)?)?;
            self.show_explanation(&answer);
        }
        Ok(Exit::Done)
    }
}

/// What goes wrong before a run begins leaves nothing partly done.
fn before_anything(error: impl Into<Error>) -> Problem {
    let problem = Problem::from(error.into());
    if problem.exit_code() == Exit::Partly { problem.exit(Exit::Unable) } else { problem }
}

/// What a run left half-way is settled at once where that is possible, not by the next command: the error
/// is reported either way.
fn settle_now<T>(
    around: &Surroundings<'_>,
    store: &Store,
    journal: &mut Journal,
    result: Result<T, Error>,
) -> Result<T, Error> {
    result.inspect_err(|_| drop(recover(around, store, journal)))
}

/// A regular file on the file system of a store that is not there yet, for asking what can be enforced.
fn sample_in(place: &Place) -> Result<kernel::File, Error> {
    kernel::sample_file(place.base()).map_err(|errno| store::Error::at("use", place.base())(errno).into())
}

fn command_line() -> String {
    let words: Vec<String> = std::env::args_os().map(|word| PathText::new(&word).to_string()).collect();
    words.join(" ")
}
