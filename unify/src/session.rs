//! A run put together: look, walk, read, plan, apply, remember.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use kernel::{Errno, Seal, Time};
use rayon::prelude::*;
use store::census::Census;
use store::index::{Index, ObjectRow};
use store::journal::{Batch, Journal, RunEnd, RunId, RunKind};
use store::{IdentityPolicy, ObjectName, Place, Store};

use crate::apply::{Done, Executor};
use crate::guest::Guest;
use crate::judge::Judge;
use crate::maintain::put_aside;
use crate::notes::{Count, Notes, Skip, Skipped, Surroundings};
use crate::objects::Objects;
use crate::packages::Warning;
use crate::plan::{Plan, Planner, Size, is_intact};
use crate::seals::reseal;
use crate::walk::{self, Walk};
use crate::{Error, Reflinks, Result};

/// The guests at hand and what decides about their files.
pub struct Session<'a> {
    pub(crate) around: &'a Surroundings<'a>,
    pub(crate) place: &'a Place,
    pub(crate) guests: Vec<Guest>,
    pub(crate) judges: Vec<Judge>,
    pub(crate) notes: Notes,
}

/// What a run found and did.
#[derive(Debug, Default)]
pub struct Report {
    /// Its number in the journal; none for a dry run or if there was nothing to do.
    pub run: Option<RunId>,
    /// How it ended; none for a dry run.
    pub end: Option<RunEnd>,
    /// Directories of the guests.
    pub dirs: u64,
    /// Names that were objects' already.
    pub unified: u64,
    /// Names of files that policy lets us share and that are not objects.
    pub candidates: u64,
    /// Names that stay private by policy or by type.
    pub private: u64,
    /// Files and bytes that were read.
    pub read: (u64, u64),
    /// How long reading and hashing took, in seconds.
    pub read_seconds: f64,
    /// What was planned.
    pub planned: Size,
    /// What was done.
    pub done: Done,
    /// Objects that no longer are what their names say: moved to `quarantine/`.
    pub corrupt: Vec<ObjectName>,
    /// Objects that could not be proven, sealed or put aside: a guest has them open for writing, or under a lease.
    pub unsealed: Vec<ObjectName>,
    /// What an undo was to make private and has not, as far as is known: files, and directories that could not be read.
    pub left_shared: u64,
    /// Files that were left as they were, counted by short name.
    pub skipped: BTreeMap<&'static str, u64>,
    /// The first of them.
    pub skipped_files: Vec<Skipped>,
    /// What is wrong with the package databases that were read, by guest (as the store knows it).
    pub warnings: Vec<(PathBuf, Warning)>,
    /// Objects in the store after the run.
    pub objects: u64,
    /// What sharing extents came to; none if it was not asked for.
    pub reflinks: Option<Reflinks>,
}

impl Report {
    /// Whether something could not be done that should have been.
    pub fn has_failures(&self) -> bool {
        !self.corrupt.is_empty()
            || !self.unsealed.is_empty()
            || self.skipped.keys().any(|name| *name == "failed")
    }
}

/// What a look at the guests gave, before anything is decided.
struct Survey {
    objects: Objects,
    censuses: Vec<Census>,
    corrupt: Vec<ObjectName>,
    began: Time,
}

impl<'a> Session<'a> {
    /// Opens guests where a store is or would be; `judges` are made by the caller, one a guest.
    pub fn open(
        around: &'a Surroundings<'a>,
        place: &'a Place,
        paths: &[PathBuf],
        judge: impl FnMut(&Guest) -> Result<Judge>,
    ) -> Result<Self> {
        kernel::ignore_lease_breaks();
        let guests = Guest::open_all(place, paths)?;
        let judges = guests.iter().map(judge).collect::<Result<_>>()?;
        Ok(Self { around, place, guests, judges, notes: Notes::default() })
    }

    /// Restricts the guests to packages, a selection for each guest in their order.
    pub fn restrict(&mut self, selections: Vec<crate::Selection>) {
        self.judges.iter_mut().zip(selections).for_each(|(judge, selection)| judge.restrict(selection));
    }

    /// The guests.
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Who decides about each guest's files.
    pub fn judges(&self) -> &[Judge] {
        &self.judges
    }

    /// Plans and shows each batch to `show`; changes nothing. `store` is none where there is none yet.
    pub fn preview(
        self,
        store: Option<&Store>,
        identity: IdentityPolicy,
        mut show: impl FnMut(&Batch),
    ) -> Result<Report> {
        let index = store.and_then(Index::open_read_only);
        let mut survey = self.survey(store, identity, index.as_ref(), None)?;
        let plan = self.plan(store, (identity, None), &survey.objects, &mut survey.censuses)?;
        if self.around.stopping() {
            return Err(Error::Interrupted);
        }
        plan.batches().for_each(|batch| show(&batch));
        let mut report = Report { warnings: self.warnings(), ..Report::of(&plan, survey.objects.len()) };
        report.corrupt.append(&mut survey.corrupt);
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// Plans and carries the plan out. `command` is for the journal.
    pub fn unify(self, store: &Store, journal: &mut Journal, seal: Seal, command: &str) -> Result<Report> {
        let identity = store.format().identity;
        let mut index = Index::open(store).ok();
        let mut survey = self.survey(Some(store), identity, index.as_ref(), Some(seal))?;
        if survey.objects.is_locked {
            return Err(Error::OtherSeal { store: store.path().to_path_buf() });
        }
        let mut withheld = self.put_aside_all(store, &mut survey.corrupt)?;
        survey.objects.distrust(&withheld);
        let began = survey.began;
        let mut plan =
            self.plan(Some(store), (identity, Some(seal)), &survey.objects, &mut survey.censuses)?;
        let untouched = self.put_aside_all(store, &mut plan.corrupt)?;
        untouched.iter().for_each(|name| plan.leave_out(name.id));
        withheld.extend(&untouched);
        let mut report = Report { warnings: self.warnings(), ..Report::of(&plan, survey.objects.len()) };
        report.corrupt.append(&mut survey.corrupt);
        if seal != Seal::None {
            withheld.extend(&survey.objects.suspects);
            withheld.sort_unstable();
            withheld.dedup();
        }
        report.unsealed = withheld;
        report.end = Some(RunEnd::Complete);
        if self.around.stopping() {
            return Err(Error::Interrupted);
        }
        let admitted: Vec<ObjectRow> = plan.admissions().collect();
        let touched = plan.touched();
        if !plan.is_empty() {
            let run = Run { session: &self, store, journal, seal };
            run.carry_out(RunKind::Unify, command, plan.batches(), plan.actions(), &mut report, &[])?;
        }
        drop(plan);
        report.objects += report.done.admitted;
        if let Some(index) = &mut index {
            survey.objects.distrust(&untouched);
            let objects = survey.objects.into_rows_if_new(store, admitted);
            for (census, dirs) in survey.censuses.iter_mut().zip(&touched) {
                walk::forget(census, dirs);
            }
            self.remember(store, index, survey.censuses, objects.as_deref(), began);
        }
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// Takes corrupt objects out of use. Those that a guest keeps where they are, are returned instead.
    fn put_aside_all(&self, store: &Store, corrupt: &mut Vec<ObjectName>) -> Result<Vec<ObjectName>> {
        let (mut done, mut withheld) = (Vec::new(), Vec::new());
        for name in std::mem::take(corrupt) {
            let aside = put_aside(self.around, store, name)?;
            if aside.is_some() { &mut done } else { &mut withheld }.push(name);
        }
        *corrupt = done;
        Ok(withheld)
    }

    fn warnings(&self) -> Vec<(PathBuf, Warning)> {
        let of = |(guest, judge): (&Guest, &Judge)| {
            let warnings = judge.packages_if_read().map(|packages| packages.warnings().to_vec());
            warnings
                .unwrap_or_default()
                .into_iter()
                .map(|warning| (guest.key.clone(), warning))
                .collect::<Vec<_>>()
        };
        self.guests.iter().zip(&self.judges).flat_map(of).collect()
    }

    /// Looks at every object once and walks every guest.
    fn survey(
        &self,
        store: Option<&Store>,
        identity: IdentityPolicy,
        index: Option<&Index>,
        seal: Option<Seal>,
    ) -> Result<Survey> {
        let began = Time::now();
        let recorded = index.map(Index::objects).unwrap_or_default();
        let mut objects = match store {
            Some(store) => Objects::scan(store, recorded, seal)?,
            None => Objects::default(),
        };
        let mut corrupt = Vec::new();
        for name in std::mem::take(&mut objects.suspects) {
            let Some(store) = store else { continue };
            match is_intact(self.around, store, name)? {
                Some(true) if self.is_sealed_again(store, name, seal)? => {}
                Some(false) => corrupt.push(name),
                Some(true) | None => objects.suspects.push(name),
            }
        }
        self.around.observer.phase("walking", 0);
        let mut censuses = Vec::with_capacity(self.guests.len());
        let all: Vec<(&Guest, &Judge)> = self.guests.iter().zip(&self.judges).collect();
        // What earlier runs found is in memory for as many guests as are walked at once.
        for some in all.chunks(rayon::current_num_threads()) {
            let before: Vec<Option<Census>> = some
                .iter()
                .map(|(guest, judge)| {
                    index
                        .filter(|_| !judge.is_restricted())
                        .and_then(|index| index.census(&guest.key))
                        .filter(|census| census.fingerprint == judge.fingerprint())
                })
                .collect();
            let walk = |(&(guest, judge), before): (&(&Guest, &Judge), Option<Census>)| {
                let (around, dev, notes) = (self.around, self.place.dev(), &self.notes);
                let before = before.as_ref();
                Walk { around, guest, judge, objects: &objects, dev, identity, began, before, notes }.run()
            };
            censuses.par_extend(some.par_iter().zip(before).map(walk));
        }
        if self.around.stopping() {
            return Err(Error::Interrupted);
        }
        Ok(Survey { objects, censuses, corrupt, began })
    }

    /// False: a guest has it open for writing, or keeps us from opening it.
    fn is_sealed_again(&self, store: &Store, name: ObjectName, seal: Option<Seal>) -> Result<bool> {
        let Some(seal) = seal.filter(|seal| *seal != Seal::None) else { return Ok(true) };
        match reseal(self.around, store, name, seal) {
            Ok(()) => Ok(true),
            Err(Skip::Failed(errno)) => Err(store::Error::at("seal", store.object_path(name))(errno).into()),
            Err(_) => Ok(false),
        }
    }

    fn plan<'s>(
        &'s self,
        store: Option<&'s Store>,
        (identity, seal): (IdentityPolicy, Option<Seal>),
        objects: &'s Objects,
        censuses: &'s mut [Census],
    ) -> Result<Plan<'s>> {
        let planner = Planner {
            around: self.around,
            store,
            identity,
            seal,
            guests: &self.guests,
            objects,
            notes: &self.notes,
            rotational: kernel::is_rotational(self.place.dev()),
            bytes_read: Count::default(),
            files_read: Count::default(),
            read_micros: Count::default(),
        };
        planner.plan(censuses)
    }

    /// Keeps what was found for the next run. The index is a cache: failing to write it loses time only.
    fn remember(
        &self,
        store: &Store,
        index: &mut Index,
        mut censuses: Vec<Census>,
        objects: Option<&[ObjectRow]>,
        began: Time,
    ) {
        censuses.par_iter_mut().for_each(|census| walk::settle(census, began));
        let mut known: Vec<(PathBuf, Option<&Census>)> = self
            .guests
            .iter()
            .zip(&self.judges)
            .zip(&censuses)
            .filter(|((_, judge), _)| !judge.is_restricted())
            .map(|((guest, _), census)| (guest.key.clone(), Some(census)))
            .collect();
        // Guests that have been removed since.
        let gone = |key: &PathBuf| {
            !self.guests.iter().any(|guest| guest.key == *key)
                && matches!(self.place.root().open_dir(key.as_os_str().as_bytes()), Err(Errno::NOENT))
        };
        known.extend(index.guests().unwrap_or_default().into_iter().filter(gone).map(|key| (key, None)));
        if index.store(&known, objects).is_err() {
            store::index::discard(store).ok();
        }
    }
}

impl Report {
    fn of(plan: &Plan<'_>, objects: usize) -> Self {
        let mut report = Self {
            read: (plan.files_read, plan.bytes_read),
            read_seconds: plan.read_seconds,
            planned: plan.size(),
            corrupt: plan.corrupt.clone(),
            objects: objects as u64,
            ..Self::default()
        };
        for census in plan.censuses() {
            report.dirs += census.dirs.len() as u64;
            report.unified += census.dirs.iter().map(|dir| u64::from(dir.unified)).sum::<u64>();
            report.private += census.dirs.iter().map(|dir| u64::from(dir.fixed)).sum::<u64>();
            let candidates = census.files.iter().filter(|file| file.state == 0).count() as u64;
            report.candidates += candidates;
            report.private += census.files.len() as u64 - candidates;
        }
        report
    }

    pub(crate) fn fill_skipped(&mut self, notes: Notes) {
        let (counts, files) = notes.into_parts();
        for (kind, count) in counts {
            *self.skipped.entry(kind).or_default() += count;
        }
        self.skipped_files.extend(files);
    }
}

/// What carrying out a plan needs.
pub(crate) struct Run<'s, 'a> {
    pub(crate) session: &'s Session<'a>,
    pub(crate) store: &'s Store,
    pub(crate) journal: &'s mut Journal,
    pub(crate) seal: Seal,
}

impl Run<'_, '_> {
    /// Carries out batches under one run of the journal. Stops between batches if the user wants to.
    pub(crate) fn carry_out(
        self,
        kind: RunKind,
        command: &str,
        batches: impl Iterator<Item = Batch>,
        actions: u64,
        report: &mut Report,
        undoes: &[RunId],
    ) -> Result<()> {
        let Session { around, guests, notes, .. } = self.session;
        around.observer.phase("linking", actions);
        let run = self.journal.begin(kind, command, self.seal)?;
        report.run = Some(run);
        let mut executor = Executor::new(around, self.store, self.journal, guests, notes, (run, self.seal))?;
        let mut end = executor.execute(batches)?;
        report.done = executor.finish()?;
        if end == RunEnd::Complete && report.done.not_done > 0 {
            end = RunEnd::Partial;
        }
        let summary = serde_json::json!({
            "admitted": report.done.admitted,
            "linked": report.done.linked,
            "detached": report.done.detached,
            "removed": report.done.removed,
            "not_done": report.done.not_done,
            "freed": report.done.freed,
            "taken": report.done.taken,
            "strays": notes.count(Skip::Stray),
        });
        let undoes = if end == RunEnd::Complete { undoes } else { &[] };
        self.journal.end(run, end, &summary.to_string(), undoes)?;
        report.end = Some(end);
        Ok(())
    }
}
