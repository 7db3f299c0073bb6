//! Rows of our own tables by the server's access methods, where to begin and end a statement costs several times its work.
//!
//! Only for tables that need no more than that: ordinary heaps with the columns we know, whose triggers, checks and indexes a
//! statement would not have to evaluate. [`Table::open`] gives nothing else, so a table to which somebody adds a trigger or an
//! index on an expression is written by statements again. Columns are numbered from 1, as in the table's definition.

mod places;

use pgrx::datum::FromDatum;
use pgrx::{pg_guard, pg_sys};
use places::{Name, Place, Places};
use std::cell::{OnceCell, RefCell};
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;

/// A value of a column; None is NULL.
pub type Value = Option<pg_sys::Datum>;

/// Columns and their new values; None leaves the row alone.
pub type Change = Option<Vec<(usize, Value)>>;

/// What a column must be, and the value for that.
pub struct Key(pub i16, pub Is, pub Value);

/// Equal, if nothing else is said; by the type of the column.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub enum Is {
    Uuid,
    /// Of the collation "C".
    Text,
    Moment,
    Small,
    Big,
    BigAbove,
    Day,
    DayFrom,
}

impl Key {
    /// Whether a row with these columns has it.
    ///
    /// # Safety
    /// Columns of a table with one of that type.
    unsafe fn is_of(&self, row: &[Value]) -> bool {
        let Some((value, column)) = self.2.zip(row[usize::try_from(self.0 - 1).unwrap_or_default()]) else {
            return false;
        };
        // SAFETY: the caller's promise.
        unsafe {
            match self.1 {
                Is::Uuid => uuid(value) == uuid(column),
                Is::Text => <&str>::from_datum(value, false) == <&str>::from_datum(column, false),
                Is::Small => i16::from_datum(value, false) == i16::from_datum(column, false),
                _ => value == column,
            }
        }
    }

    /// What a row with all these keys, told by an index, is remembered by; None where they are not all of it.
    fn name(index: pg_sys::Oid, keys: &[Self]) -> Option<Name> {
        let mut name = Name::new(index.to_u32().into());
        for Self(_, is, value) in keys {
            let value = (*value)?;
            // SAFETY: values of these types.
            unsafe {
                name = match is {
                    Is::Uuid => name.and_bytes(uuid(value)),
                    Is::Text => name.and_bytes(<&str>::from_datum(value, false)?.as_bytes()),
                    Is::Small | Is::Big => name.and(value.value() as u64),
                    Is::Moment | Is::BigAbove | Is::Day | Is::DayFrom => return None,
                };
            }
        }
        Some(name)
    }
}

/// # Safety
/// A value of type uuid.
unsafe fn uuid<'a>(value: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), 16) }
}

impl Is {
    fn procedure(self) -> pg_sys::RegProcedure {
        match self {
            Self::Uuid => pg_sys::F_UUID_EQ,
            Self::Text => pg_sys::F_TEXTEQ,
            Self::Moment => pg_sys::F_TIMESTAMPTZ_EQ,
            Self::Small => pg_sys::F_INT2EQ,
            Self::Big => pg_sys::F_INT8EQ,
            Self::BigAbove => pg_sys::F_INT8GT,
            Self::Day => pg_sys::F_DATE_EQ,
            Self::DayFrom => pg_sys::F_DATE_GE,
        }
        .into()
    }

    fn strategy(self) -> u16 {
        let strategy = match self {
            Self::BigAbove => pg_sys::BTGreaterStrategyNumber,
            Self::DayFrom => pg_sys::BTGreaterEqualStrategyNumber,
            _ => pg_sys::BTEqualStrategyNumber,
        };
        u16::try_from(strategy).unwrap_or_default()
    }
}

/// What is to be written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Write {
    Insert,
    Update,
}

/// What becomes of rows that others hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// They are passed by; so is what others keep changing.
    Skip,
    /// There are none: we have locked it.
    Ours,
    /// They are waited for, one transaction after the other in the queue of that number, which should be the row's own. A row
    /// that is left alone after that is not held.
    Wait(u32),
}

/// What came of changing a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// At once.
    Yes,
    /// After others who held it.
    AfterWaiting,
    /// There is none, or it was left alone.
    No,
    /// Only such as others hold or keep changing.
    Held,
}

/// Which state of a table is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// What was committed by now.
    Latest,
    /// What the caller's statement sees.
    Callers,
}

/// A snapshot that is kept as long as this is.
struct Seen(pg_sys::Snapshot);

impl Seen {
    fn new(at: Snapshot) -> Self {
        // SAFETY: registered, and so forgotten by the end of the transaction on errors.
        unsafe {
            Self(pg_sys::RegisterSnapshot(match at {
                Snapshot::Latest => pg_sys::GetLatestSnapshot(),
                Snapshot::Callers => pg_sys::GetActiveSnapshot(),
            }))
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: registered before.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

/// Where the place of a row stands, this says that what stands there is a token: `SpecTokenOffsetNumber`.
const SPECULATIVE: u16 = 0xfffe;

/// Whether others are told that a row may turn out to be no news.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Attempt {
    Told,
    Untold,
}

/// No table of ours has more.
const MOST_COLUMNS: usize = 32;

/// How often a row that others changed meanwhile is looked for again.
const ATTEMPTS: usize = 4;

/// What came of looking for a row that can be changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Changed,
    /// This transaction holds it.
    Held(pg_sys::TransactionId),
    /// Somebody changed it since the snapshot.
    Outdated,
}

/// The first place in a queue: whoever has it waits for the row, all others for him, so that the end of a transaction wakes one
/// of them and not all. Given back as soon as the row is changed.
struct Turn(pg_sys::LOCKTAG);

impl Turn {
    const MODE: i32 = pg_sys::ExclusiveLock.cast_signed();

    fn take(table: &Table, number: u32) -> Self {
        // SAFETY: a tag of an object that is none, of the class of the table; given back on errors by the end of the transaction.
        unsafe {
            let tag = pg_sys::LOCKTAG {
                locktag_field1: pg_sys::MyDatabaseId.to_u32(),
                locktag_field2: (*table.relation).rd_id.to_u32(),
                locktag_field3: number,
                locktag_field4: 0,
                locktag_type: u8::try_from(pg_sys::LockTagType::LOCKTAG_OBJECT).unwrap_or_default(),
                locktag_lockmethodid: u8::try_from(pg_sys::DEFAULT_LOCKMETHOD).unwrap_or_default(),
            };
            pg_sys::LockAcquire(&raw const tag, Self::MODE, false, false);
            Self(tag)
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: taken before.
            unsafe { pg_sys::LockRelease(&raw const self.0, Self::MODE, false) };
        }
    }
}

/// The queue of those who wait for a row of that name: two that share a number by chance only wait a little longer.
pub fn queue(name: impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}

thread_local! {
    // Few enough to be looked through.
    /// Which tables need no statement, as far as this backend looked, until something about them changes.
    static SIMPLE: RefCell<Vec<(pg_sys::Oid, Write, bool)>> = RefCell::default();
    /// Tables and indexes by name, until something about them changes.
    static NAMES: RefCell<Vec<(String, pg_sys::Oid)>> = RefCell::default();
    /// Where rows were found.
    static PLACES: RefCell<Places> = RefCell::default();
    /// Unique indexes that were asked with all of their columns, and how many those are.
    static WHOLE: RefCell<Vec<(pg_sys::Oid, usize)>> = RefCell::default();
}

/// Registers the callback; once per backend.
pub fn watch_invalidations() {
    // SAFETY: the callback lives as long as the library.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn forget(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let is_other = |id: pg_sys::Oid| relation != pg_sys::InvalidOid && id != relation;
    // Borrows are short and take no invalidation inside.
    SIMPLE.with(|simple| simple.try_borrow_mut().map(|mut s| s.retain(|(id, _, _)| is_other(*id))).ok());
    NAMES.with(|names| names.try_borrow_mut().map(|mut n| n.retain(|(_, id)| is_other(*id))).ok());
    WHOLE.with(|whole| whole.try_borrow_mut().map(|mut w| w.retain(|(id, _)| is_other(*id))).ok());
}

/// What is known of a table, or what a look at it finds.
fn known(about: (pg_sys::Oid, Write), look: impl FnOnce() -> bool) -> bool {
    let is_it = |(id, write, _): &&(pg_sys::Oid, Write, bool)| (*id, *write) == about;
    SIMPLE.with_borrow(|simple| simple.iter().find(is_it).map(|(_, _, known)| *known)).unwrap_or_else(|| {
        let found = look();
        SIMPLE.with_borrow_mut(|simple| simple.push((about.0, about.1, found)));
        found
    })
}

fn relation_id(name: &str) -> pg_sys::Oid {
    if let Some(id) = NAMES.with_borrow(|names| names.iter().find(|(known, _)| known == name).map(|(_, id)| *id)) {
        return id;
    }
    let text = CString::new(name).expect("a name without NUL");
    // SAFETY: looks names up.
    let id = unsafe {
        let schema = pg_sys::get_namespace_oid(c"billing".as_ptr(), true);
        pg_sys::get_relname_relid(text.as_ptr(), schema)
    };
    if id != pg_sys::InvalidOid {
        NAMES.with_borrow_mut(|names| names.push((name.to_owned(), id)));
    }
    id
}

/// Whether there is an index of that name: somebody may have renamed it.
pub fn has_index(name: &str) -> bool {
    relation_id(name) != pg_sys::InvalidOid
}

/// A table that is open for writing, until the end of the transaction.
pub struct Table {
    relation: pg_sys::Relation,
    /// Which rows belong into its partial indexes.
    partial: Belongs,
    /// Once they were needed.
    indexes: OnceCell<Vec<Index>>,
    /// How many blocks it had when that was needed: it does not become shorter as long as we have it.
    blocks: OnceCell<u32>,
}

/// What partial indexes of a table are for, as the server prints it; and which of the rows to be written are of those.
#[derive(Clone, Copy)]
pub struct Partial(pub &'static str, pub Belongs);

/// Which rows belong into a partial index.
#[derive(Clone, Copy)]
pub enum Belongs {
    /// None of those that are written.
    No,
    /// All of them.
    Yes,
    /// Those with this column.
    Having(usize),
}

impl Belongs {
    fn row(self, row: &[Value]) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::Having(column) => row[column - 1].is_some(),
        }
    }
}

impl Table {
    /// None where there is no such table with so many columns, or a statement is needed to write it: also in a read-only
    /// transaction, which must fail, and to change rows in one that has one snapshot, which must fail where a row changed since.
    pub fn open(name: &str, columns: usize, write: Write) -> Option<Self> {
        Self::open_with(name, columns, write, None)
    }

    /// The same for a table with partial indexes, of which all are for the same rows.
    pub fn open_partial(name: &str, columns: usize, write: Write, partial: Partial) -> Option<Self> {
        Self::open_with(name, columns, write, Some(partial))
    }

    fn open_with(name: &str, columns: usize, write: Write, partial: Option<Partial>) -> Option<Self> {
        // SAFETY: reads globals.
        let (level, reads_only) = unsafe { (pg_sys::XactIsoLevel, pg_sys::XactReadOnly) };
        let one_snapshot = level >= pg_sys::XACT_REPEATABLE_READ.cast_signed();
        // SAFETY: looks at the state of the transaction.
        let reads_only = reads_only || unsafe { pg_sys::IsInParallelMode() };
        if reads_only || (one_snapshot && write == Write::Update) {
            return None;
        }
        let id = relation_id(name);
        if id == pg_sys::InvalidOid {
            return None;
        }
        let mut table = Self::begin(id, pg_sys::RowExclusiveLock);
        table.partial = partial.map_or(Belongs::No, |partial| partial.1);
        let is_simple = known((id, write), || table.is_simple(write, partial.map(|partial| partial.0)));
        (is_simple && table.columns() == columns).then_some(table)
    }

    /// A table for reading its rows as they are.
    pub fn open_to_read(name: &str, columns: usize) -> Option<Self> {
        let id = relation_id(name);
        if id == pg_sys::InvalidOid {
            return None;
        }
        let table = Self::begin(id, pg_sys::AccessShareLock);
        (table.is_heap() && table.columns() == columns).then_some(table)
    }

    /// The same for a partition of a table, whose own triggers and rules count.
    pub fn open_partition(name: &str, parent: &str, columns: usize, write: Write) -> Option<Self> {
        let (table, id) = (Self::open(name, columns, write)?, relation_id(parent));
        let is_unwatched = || known((id, write), || Self::begin(id, pg_sys::AccessShareLock).is_unwatched(write));
        (id != pg_sys::InvalidOid && table.is_partition() && is_unwatched()).then_some(table)
    }

    fn begin(id: pg_sys::Oid, lock: u32) -> Self {
        // SAFETY: the table exists, or the server raises an error.
        unsafe {
            let relation = pg_sys::table_open(id, lock.cast_signed());
            Self { relation, partial: Belongs::No, indexes: OnceCell::new(), blocks: OnceCell::new() }
        }
    }

    fn is_simple(&self, write: Write, partial: Option<&str>) -> bool {
        // SAFETY: an open relation.
        unsafe {
            let checks = (*(*self.relation).rd_att).constr.as_ref();
            let is_unchecked = checks.is_none_or(|c| c.num_check == 0 && !c.has_generated_stored);
            self.is_heap()
                && is_unchecked
                && self.is_unwatched(write)
                && self.indexes().iter().all(|i| i.is_simple(partial))
        }
    }

    fn is_heap(&self) -> bool {
        // SAFETY: an open relation.
        let form = unsafe { &*(*self.relation).rd_rel };
        form.relkind == pg_sys::RELKIND_RELATION.cast_signed() && form.relam == pg_sys::Oid::from(HEAP)
    }

    /// Neither triggers nor rules for it.
    fn is_unwatched(&self, write: Write) -> bool {
        // SAFETY: an open relation.
        unsafe {
            (*self.relation).rd_rules.is_null()
                && (*self.relation).trigdesc.as_ref().is_none_or(|t| match write {
                    Write::Insert => {
                        !(t.trig_insert_before_row
                            || t.trig_insert_after_row
                            || t.trig_insert_before_statement
                            || t.trig_insert_after_statement)
                    }
                    Write::Update => {
                        !(t.trig_update_before_row
                            || t.trig_update_after_row
                            || t.trig_update_before_statement
                            || t.trig_update_after_statement)
                    }
                })
        }
    }

    fn is_partition(&self) -> bool {
        // SAFETY: an open relation.
        unsafe { (*(*self.relation).rd_rel).relispartition }
    }

    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation.
        unsafe { (*self.relation).rd_att }
    }

    fn columns(&self) -> usize {
        // SAFETY: the descriptor of an open relation.
        usize::try_from(unsafe { (*self.descriptor()).natts }).unwrap_or_default()
    }

    fn indexes(&self) -> &[Index] {
        // SAFETY: an open relation; the list is ours.
        self.indexes.get_or_init(|| unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let count = list.as_ref().map_or(0, |l| usize::try_from(l.length).unwrap_or_default());
            let all = (0..count).map(|n| Index::open((*(*list).elements.add(n)).oid_value)).collect();
            pg_sys::list_free(list);
            all
        })
    }

    fn form(&self, row: &[Value]) -> pg_sys::HeapTuple {
        assert_eq!(self.columns(), row.len(), "columns of a row");
        let (mut values, mut nulls) = split(row);
        // SAFETY: an open relation; as many values as it has columns, of their types.
        unsafe { pg_sys::heap_form_tuple(self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr()) }
    }

    /// Inserts a row of all columns; gives its place.
    pub fn insert(&self, row: &[Value]) -> Place {
        let tuple = self.form(row);
        // SAFETY: a tuple of this table.
        unsafe {
            pg_sys::heap_insert(self.relation, tuple, pg_sys::GetCurrentCommandId(true), 0, std::ptr::null_mut());
            for index in self.indexes() {
                index.insert(self, tuple, row, false);
            }
            let (block, number) = pgrx::itemptr::item_pointer_get_both((*tuple).t_self);
            pg_sys::heap_freetuple(tuple);
            pg_sys::CommandCounterIncrement();
            Place { block, number }
        }
    }

    /// The same for a row that will be looked for by these keys of a unique index.
    pub fn insert_as(&self, index: &str, keys: &[Key], row: &[Value]) {
        let place = self.insert(row);
        if let Some(name) = Key::name(relation_id(index), keys) {
            PLACES.with_borrow_mut(|places| places.note(name, place));
        }
    }

    /// Inserts a row of all columns, unless there may be one like it in a unique index: one that is there, or is being inserted.
    /// Does not wait to learn which: that is for a statement with ON CONFLICT.
    ///
    /// A row that turns out to be no news is gone at once also for others who would wait for us, where they are told that it is
    /// only an attempt, as by ON CONFLICT. That takes a lock and a record in the WAL, so it can be left out where no two others
    /// insert the same at this moment: they would wait for each other.
    pub fn insert_new(&self, unique: &str, row: &[Value], attempt: Attempt) -> bool {
        let unique = relation_id(unique);
        // By another name: a statement finds it by its columns.
        if unique == pg_sys::InvalidOid {
            return false;
        }
        let tuple = self.form(row);
        // Logical decoding passes on what was inserted and deleted again, but not what was only attempted.
        // SAFETY: reads a global.
        let is_decoded = unsafe { pg_sys::wal_level } >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL.cast_signed();
        let is_told = attempt == Attempt::Told || is_decoded;
        // SAFETY: a tuple of this table; the lock of the token is given back, on errors by the end of the transaction.
        unsafe {
            let transaction = pg_sys::GetCurrentTransactionId();
            let mut options = 0;
            if is_told {
                let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
                let place = &raw mut (*(*tuple).t_data).t_ctid;
                pgrx::itemptr::item_pointer_set_all(&mut *place, token, SPECULATIVE);
                options = pg_sys::HEAP_INSERT_SPECULATIVE.cast_signed();
            }
            pg_sys::heap_insert(self.relation, tuple, pg_sys::GetCurrentCommandId(true), options, std::ptr::null_mut());
            let place = &raw mut (*tuple).t_self;
            let (first, others): (Vec<_>, Vec<_>) = self.indexes().iter().partition(|index| index.id() == unique);
            let is_new = first.iter().chain(&others).all(|index| index.insert(self, tuple, row, index.id() == unique));
            if is_told {
                if is_new {
                    pg_sys::heap_finish_speculative(self.relation, place);
                } else {
                    pg_sys::heap_abort_speculative(self.relation, place);
                }
                pg_sys::SpeculativeInsertionLockRelease(transaction);
            }
            pg_sys::CommandCounterIncrement();
            if !is_new && !is_told {
                pg_sys::simple_heap_delete(self.relation, place);
                pg_sys::CommandCounterIncrement();
            }
            pg_sys::heap_freetuple(tuple);
            is_new
        }
    }

    /// Changes one row with these keys: `change` gets its columns as they are, and gives those that change, or leaves the row
    /// alone. What it gets is what it changes: where somebody was faster, it is asked again. The snapshot is of this moment.
    pub fn update_one(
        &self,
        index: &str,
        keys: &[Key],
        held: Held,
        mut change: impl FnMut(&[Value]) -> Change,
    ) -> Changed {
        let mut turn: Option<Turn> = None;
        let mut attempts = 0;
        while attempts < ATTEMPTS || matches!(held, Held::Wait(_)) {
            attempts += 1;
            let mut found = Found::Nothing;
            let Some(mut finder) = self.finder(index, Snapshot::Latest) else { return Changed::No };
            // SAFETY: a tuple of this table.
            finder.visit(keys, |tuple, row| unsafe {
                match self.update_row(tuple, row, held, &mut change) {
                    Found::Nothing => {}
                    other => found = other,
                }
                found != Found::Changed
            });
            drop(finder);
            match found {
                Found::Changed => {
                    // SAFETY: what was changed is seen from now on.
                    unsafe { pg_sys::CommandCounterIncrement() };
                    return if turn.is_some() { Changed::AfterWaiting } else { Changed::Yes };
                }
                Found::Held(holder) => match (held, &turn) {
                    (Held::Skip | Held::Ours, _) => return Changed::Held,
                    (Held::Wait(number), None) => turn = Some(Turn::take(self, number)),
                    (Held::Wait(_), Some(_)) => self.wait_for(holder),
                },
                // The next snapshot sees what came of it.
                Found::Outdated => {}
                Found::Nothing => return Changed::No,
            }
        }
        Changed::Held
    }

    /// Locks the row with these keys, and gives what `read` makes of its columns; None where there is none. Waits in the queue
    /// of that number.
    pub fn lock_one<T>(&self, index: &str, keys: &[Key], queue: u32, mut read: impl FnMut(&[Value]) -> T) -> Option<T> {
        let mut turn: Option<Turn> = None;
        loop {
            let policy = match turn {
                None => pg_sys::LockWaitPolicy::LockWaitSkip,
                Some(_) => pg_sys::LockWaitPolicy::LockWaitBlock,
            };
            let (mut locked, mut is_there) = (None, false);
            // SAFETY: a tuple of this table.
            self.finder(index, Snapshot::Latest)?.visit(keys, |tuple, _| unsafe {
                is_there = true;
                self.lock(tuple, policy, |row| locked = Some(read(&self.deform(row))));
                false
            });
            if locked.is_some() || !is_there {
                return locked;
            }
            // Somebody holds it, or has changed it since: then the next snapshot sees what came of it.
            turn.get_or_insert_with(|| Turn::take(self, queue));
        }
    }

    /// Locks a version of a row, and shows it where that was possible.
    ///
    /// # Safety
    /// A tuple of this table, with its place.
    unsafe fn lock(
        &self,
        tuple: pg_sys::HeapTuple,
        policy: pg_sys::LockWaitPolicy::Type,
        show: impl FnOnce(pg_sys::HeapTuple),
    ) -> pg_sys::TM_Result::Type {
        // SAFETY: the caller's promise; the buffer is released in any case.
        unsafe {
            let mut row = *tuple;
            let mut buffer = pg_sys::InvalidBuffer.cast_signed();
            let mut failure = std::mem::zeroed();
            let status = pg_sys::heap_lock_tuple(
                self.relation,
                &raw mut row,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                policy,
                false,
                &raw mut buffer,
                &raw mut failure,
            );
            if status == pg_sys::TM_Result::TM_Ok {
                show(&raw mut row);
            }
            pg_sys::ReleaseBuffer(buffer);
            status
        }
    }

    fn wait_for(&self, holder: pg_sys::TransactionId) {
        // SAFETY: the place is told only to who is told of a deadlock.
        unsafe {
            let mut place: pg_sys::ItemPointerData = std::mem::zeroed();
            pg_sys::XactLockTableWait(holder, self.relation, &raw mut place, pg_sys::XLTW_Oper::XLTW_None);
        }
    }

    /// Shows the columns of all rows with these keys, and whether another transaction holds the row just now; false where there
    /// is no such index.
    pub fn read(&self, index: &str, keys: &[Key], snapshot: Snapshot, mut show: impl FnMut(&[Value], bool)) -> bool {
        // SAFETY: a tuple of this table.
        self.visit(index, keys, snapshot, |tuple| unsafe {
            show(&self.deform(tuple), holder(tuple).is_some());
            true
        })
    }

    /// Shows the columns of rows with these keys, in the order of the index, as long as `show` says so; false where there is no
    /// such index.
    pub fn read_while(&self, index: &str, keys: &[Key], at: Snapshot, mut show: impl FnMut(&[Value]) -> bool) -> bool {
        // SAFETY: a tuple of this table.
        self.visit(index, keys, at, |tuple| unsafe { show(&self.deform(tuple)) })
    }

    /// Goes over the rows with these keys as long as `visit` says so; false where there is no such index.
    fn visit(&self, index: &str, keys: &[Key], at: Snapshot, mut visit: impl FnMut(pg_sys::HeapTuple) -> bool) -> bool {
        let index = relation_id(index);
        if index == pg_sys::InvalidOid {
            return false;
        }
        let snapshot = Seen::new(at);
        // SAFETY: an index of this table.
        unsafe { self.scan(index, keys, &snapshot, |tuple, _| visit(tuple)) };
        true
    }

    /// For looking at single rows by a unique index; None where there is no such index.
    pub fn finder(&self, index: &str, at: Snapshot) -> Option<Finder<'_>> {
        let index = relation_id(index);
        (index != pg_sys::InvalidOid).then(|| {
            let (seen, buffer) = (Seen::new(at), pg_sys::InvalidBuffer.cast_signed());
            Finder { table: self, index, seen, buffer }
        })
    }

    /// Goes over the rows with these keys as long as `visit` says so; shows also the place by which the index knows it of the one row
    /// that can have them.
    ///
    /// # Safety
    /// An index of this table with columns for all keys.
    unsafe fn scan(
        &self,
        index: pg_sys::Oid,
        keys: &[Key],
        snapshot: &Seen,
        mut visit: impl FnMut(pg_sys::HeapTuple, Option<Place>) -> bool,
    ) {
        // SAFETY: an open relation and an index of it; what is begun is ended, and by the end of the transaction on errors.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock.cast_signed());
            let form = &*(*index).rd_index;
            let columns = form.indkey.values.as_slice(usize::try_from(form.indnatts).unwrap_or_default());
            let is_whole = form.indisunique && usize::try_from(form.indnkeyatts) == Ok(keys.len());
            let of_index = |column: i16| columns.iter().zip(1..).find(|(c, _)| **c == column).map_or(0, |(_, n)| n);
            let mut scan_keys: Vec<pg_sys::ScanKeyData> = Vec::with_capacity(keys.len());
            for Key(column, is, value) in keys {
                let mut key = std::mem::zeroed();
                let value = value.unwrap_or(pg_sys::Datum::from(0));
                pg_sys::ScanKeyInit(&raw mut key, of_index(*column), is.strategy(), is.procedure(), value);
                scan_keys.push(key);
            }
            let count = i32::try_from(keys.len()).unwrap_or_default();
            let slot = pg_sys::table_slot_create(self.relation, std::ptr::null_mut());
            #[cfg(not(feature = "pg18"))]
            let scan = pg_sys::index_beginscan(self.relation, index, snapshot.0, count, 0);
            #[cfg(feature = "pg18")]
            let scan = pg_sys::index_beginscan(self.relation, index, snapshot.0, std::ptr::null_mut(), count, 0);
            pg_sys::index_rescan(scan, scan_keys.as_mut_ptr(), count, std::ptr::null_mut(), 0);
            loop {
                let row = pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::ForwardScanDirection);
                if row.is_null() {
                    break;
                }
                let (block, number) = pgrx::itemptr::item_pointer_get_both(*row);
                if !pg_sys::index_fetch_heap(scan, slot) {
                    continue;
                }
                let mut is_copy = false;
                let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &raw mut is_copy);
                if !visit(tuple, is_whole.then_some(Place { block, number })) {
                    break;
                }
            }
            pg_sys::index_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
        }
    }

    /// # Safety
    /// A tuple of this table that stays where it is as long as the values are used.
    unsafe fn deform(&self, tuple: pg_sys::HeapTuple) -> Row {
        let columns = self.columns();
        assert!(columns <= MOST_COLUMNS, "a table of ours");
        let (mut values, mut nulls) = ([pg_sys::Datum::from(0); MOST_COLUMNS], [true; MOST_COLUMNS]);
        // SAFETY: the caller's promise; at least as many places as it has columns.
        unsafe { pg_sys::heap_deform_tuple(tuple, self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr()) };
        let mut row = Row { values: [None; MOST_COLUMNS], columns };
        for ((column, value), null) in row.values.iter_mut().zip(values).zip(nulls).take(columns) {
            *column = (!null).then_some(value);
        }
        row
    }

    /// Tries to change a version of a row. Nothing is locked before it is known that it will be changed, so most rows are
    /// written once.
    ///
    /// # Safety
    /// A tuple of this table, with its place and its columns.
    unsafe fn update_row(
        &self,
        tuple: pg_sys::HeapTuple,
        row: &[Value],
        held: Held,
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Found {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(holder) = holder(tuple) {
                return Found::Held(holder);
            }
            let found = self.update(tuple, row, held == Held::Ours, change);
            let is_many = u32::from((*(*tuple).t_data).t_infomask) & pg_sys::HEAP_XMAX_IS_MULTI != 0;
            match (found, held) {
                (Found::Held(holder), _) if !is_many && pg_sys::TransactionIdIsCurrentTransactionId(holder) => {
                    self.update(tuple, row, true, change)
                }
                // Held by several, ourselves among them perhaps: the server knows.
                (Found::Held(_), Held::Wait(_)) if is_many => self.update_when_locked(tuple, change),
                (found, _) => found,
            }
        }
    }

    /// # Safety
    /// A tuple of this table, with its place.
    unsafe fn update_when_locked(
        &self,
        tuple: pg_sys::HeapTuple,
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Found {
        let mut found = Found::Outdated;
        // SAFETY: the caller's promise.
        unsafe {
            let wait = pg_sys::LockWaitPolicy::LockWaitBlock;
            self.lock(tuple, wait, |row| found = self.update(row, &self.deform(row), true, change));
        }
        found
    }

    /// Changes a version of a row, unless somebody holds or has changed it. `is_ours`: we hold it.
    ///
    /// # Safety
    /// A tuple of this table that is in a pinned buffer, and its columns.
    unsafe fn update(
        &self,
        tuple: pg_sys::HeapTuple,
        row: &[Value],
        is_ours: bool,
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Found {
        // SAFETY: the caller's promise; the new tuple has as many columns.
        unsafe {
            let Some(changed) = change(row) else { return Found::Nothing };
            let mut row = row.to_vec();
            for (column, value) in changed {
                row[column - 1] = value;
            }
            let new = self.form(&row);
            let (status, holder) = replace(self.relation, &raw mut (*tuple).t_self, new, is_ours);
            let found = match status {
                pg_sys::TM_Result::TM_Ok => Found::Changed,
                pg_sys::TM_Result::TM_BeingModified => Found::Held(holder),
                _ => Found::Outdated,
            };
            let is_heap_only = u32::from((*(*new).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE != 0;
            if found == Found::Changed && !is_heap_only {
                for index in self.indexes() {
                    index.insert(self, new, &row, false);
                }
            }
            pg_sys::heap_freetuple(new);
            found
        }
    }
}

/// The columns of a row.
struct Row {
    values: [Value; MOST_COLUMNS],
    columns: usize,
}

impl Deref for Row {
    type Target = [Value];
    fn deref(&self) -> &[Value] {
        &self.values[..self.columns]
    }
}

/// Looks for single rows of a table, all at one moment.
pub struct Finder<'a> {
    table: &'a Table,
    index: pg_sys::Oid,
    seen: Seen,
    /// Where the last row was: rows that are looked at together often stand together.
    buffer: pg_sys::Buffer,
}

impl Finder<'_> {
    /// Shows the columns of the first row with these keys, where there is one; and whether another transaction holds it just now.
    pub fn read(&mut self, keys: &[Key], mut show: impl FnMut(&[Value], bool)) {
        self.visit(keys, |tuple, row| {
            // SAFETY: a tuple in a pinned buffer.
            show(row, unsafe { holder(tuple) }.is_some());
            false
        });
    }

    /// Goes over the rows with these keys as long as `visit` says so. Where there can only be one, looks where it was found the last
    /// time, and else asks the index.
    fn visit(&mut self, keys: &[Key], mut visit: impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool) {
        // What a serializable transaction has read is noted where the index is asked.
        // SAFETY: reads a global.
        let is_noted = unsafe { pg_sys::XactIsoLevel } < pg_sys::XACT_SERIALIZABLE.cast_signed();
        let name = Key::name(self.index, keys).filter(|_| is_noted);
        let is_whole = WHOLE.with_borrow(|whole| whole.contains(&(self.index, keys.len())));
        let place = name.filter(|_| is_whole).and_then(|name| PLACES.with_borrow(|places| places.get(name)));
        // SAFETY: an index of this table.
        unsafe {
            if place.is_some_and(|place| self.visit_at(place, keys, &mut visit)) {
                return;
            }
            self.table.scan(self.index, keys, &self.seen, |tuple, place| {
                if let Some((name, place)) = name.zip(place) {
                    PLACES.with_borrow_mut(|places| places.note(name, place));
                    if !is_whole {
                        WHOLE.with_borrow_mut(|whole| whole.push((self.index, keys.len())));
                    }
                }
                visit(tuple, &self.table.deform(tuple))
            });
        }
    }

    /// Shows the row at a place, if it has these keys; else false.
    ///
    /// # Safety
    /// Keys of this table.
    unsafe fn visit_at(
        &mut self,
        place: Place,
        keys: &[Key],
        visit: &mut impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) -> bool {
        let relation = self.table.relation;
        // SAFETY: an open relation, and a block of it; the buffer is released, on errors by the end of the transaction.
        unsafe {
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            let blocks = self.table.blocks.get_or_init(|| pg_sys::RelationGetNumberOfBlocksInFork(relation, main));
            if place.block >= *blocks {
                return false;
            }
            let before = std::mem::replace(&mut self.buffer, pg_sys::InvalidBuffer.cast_signed());
            self.buffer = pg_sys::ReleaseAndReadBuffer(before, relation, place.block);
            if self.buffer != before {
                // As a scan does: it makes room for the next versions.
                pg_sys::heap_page_prune_opt(relation, self.buffer);
            }
            let mut tuple: pg_sys::HeapTupleData = std::mem::zeroed();
            let mut row: pg_sys::ItemPointerData = std::mem::zeroed();
            pgrx::itemptr::item_pointer_set_all(&mut row, place.block, place.number);
            pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_SHARE.cast_signed());
            let is_there = pg_sys::heap_hot_search_buffer(
                &raw mut row,
                relation,
                self.buffer,
                self.seen.0,
                &raw mut tuple,
                std::ptr::null_mut(),
                true,
            );
            pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_UNLOCK.cast_signed());
            if !is_there {
                return false;
            }
            let row = self.table.deform(&raw mut tuple);
            let is_it = keys.iter().all(|key| key.is_of(&row));
            if is_it {
                visit(&raw mut tuple, &row);
            }
            is_it
        }
    }
}

impl Drop for Finder<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.buffer != pg_sys::InvalidBuffer.cast_signed() {
            // SAFETY: pinned before.
            unsafe { pg_sys::ReleaseBuffer(self.buffer) };
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // An error closes everything by itself.
        if !std::thread::panicking() {
            // SAFETY: opened above; the lock stays until the end of the transaction.
            unsafe {
                pg_sys::table_close(self.relation, pg_sys::NoLock.cast_signed());
            }
        }
    }
}

/// The server's own tables are of this access method, and most others: `HEAP_TABLE_AM_OID`.
const HEAP: u32 = 2;

/// The other transaction under way that has changed or locked a row, if there is one.
///
/// # Safety
/// A tuple in a pinned buffer.
unsafe fn holder(tuple: pg_sys::HeapTuple) -> Option<pg_sys::TransactionId> {
    // SAFETY: the caller's promise.
    unsafe {
        let header = &*(*tuple).t_data;
        let (mask, holder) = (u32::from(header.t_infomask), header.t_choice.t_heap.t_xmax);
        let is_over = mask & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_COMMITTED) != 0;
        // Several hold it: whoever wants it finds out.
        let is_many = mask & pg_sys::HEAP_XMAX_IS_MULTI != 0;
        let is_held = !is_over
            && !is_many
            && !pg_sys::TransactionIdIsCurrentTransactionId(holder)
            && pg_sys::TransactionIdIsInProgress(holder);
        is_held.then_some(holder)
    }
}

/// Values and whether they are null, as the server takes them.
fn split(row: &[Value]) -> (Vec<pg_sys::Datum>, Vec<bool>) {
    (row.iter().map(|v| v.unwrap_or(pg_sys::Datum::from(0))).collect(), row.iter().map(Option::is_none).collect())
}

/// Puts a new version of a row in the place of one, unless somebody holds it or was faster; gives who. The server asks to be
/// allowed to wait where it is us who hold it.
///
/// # Safety
/// An open relation, the place of a row of it, and a tuple of it.
unsafe fn replace(
    relation: pg_sys::Relation,
    place: pg_sys::ItemPointer,
    new: pg_sys::HeapTuple,
    is_ours: bool,
) -> (pg_sys::TM_Result::Type, pg_sys::TransactionId) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut failure: pg_sys::TM_FailureData = std::mem::zeroed();
        let mut mode = std::mem::zeroed();
        let command = pg_sys::GetCurrentCommandId(true);
        let any = std::ptr::null_mut();
        #[cfg(feature = "pg15")]
        let status = pg_sys::heap_update(relation, place, new, command, any, is_ours, &raw mut failure, &raw mut mode);
        #[cfg(not(feature = "pg15"))]
        let status = pg_sys::heap_update(
            relation,
            place,
            new,
            command,
            any,
            is_ours,
            &raw mut failure,
            &raw mut mode,
            &mut std::mem::zeroed(),
        );
        (status, failure.xmax)
    }
}

/// An index that is open for writing.
struct Index {
    relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
}

impl Index {
    /// # Safety
    /// The index exists, and its table is locked.
    unsafe fn open(id: pg_sys::Oid) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let relation = pg_sys::index_open(id, pg_sys::RowExclusiveLock.cast_signed());
            Self { relation, info: pg_sys::BuildIndexInfo(relation) }
        }
    }

    /// What a partial index is for.
    fn predicate(&self) -> Option<String> {
        let column = pg_sys::AttrNumber::try_from(pg_sys::Anum_pg_index_indpred).unwrap_or_default();
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID.cast_signed();
        let mut is_null = false;
        // SAFETY: an open index, and what the catalog says of it.
        unsafe {
            let tuple = (*self.relation).rd_indextuple;
            let stored = pg_sys::SysCacheGetAttr(cache, tuple, column, &raw mut is_null);
            let table = pg_sys::Datum::from((*(*self.relation).rd_index).indrelid);
            let print = pg_sys::F_PG_GET_EXPR_PG_NODE_TREE_OID;
            (!is_null).then(|| {
                let printed = pg_sys::OidFunctionCall2Coll(print, pg_sys::InvalidOid, stored, table);
                String::from_datum(printed, false).unwrap_or_default()
            })
        }
    }

    fn id(&self) -> pg_sys::Oid {
        // SAFETY: an open index.
        unsafe { (*self.relation).rd_id }
    }

    /// Nothing has to be evaluated for it but whether it is for a row, where it is `partial`.
    fn is_simple(&self, partial: Option<&str>) -> bool {
        // SAFETY: an open index and what describes it.
        unsafe {
            let (info, form) = (&*self.info, &*(*self.relation).rd_index);
            info.ii_Expressions.is_null()
                && (info.ii_Predicate.is_null() || self.predicate().as_deref() == partial)
                && info.ii_ExclusionOps.is_null()
                && form.indimmediate
        }
    }

    /// Enters a tuple with these columns. `asks`: false, and it does not count, where there is or may be one like it; else the
    /// server raises an error.
    ///
    /// # Safety
    /// A tuple that was inserted into the table, of which this is an index.
    unsafe fn insert(&self, table: &Table, tuple: pg_sys::HeapTuple, row: &[Value], asks: bool) -> bool {
        use pg_sys::IndexUniqueCheck::{UNIQUE_CHECK_NO, UNIQUE_CHECK_PARTIAL, UNIQUE_CHECK_YES};
        // SAFETY: the caller's promise; as many values as the index has columns.
        unsafe {
            let info = &*self.info;
            if !info.ii_ReadyForInserts {
                return true;
            }
            if !info.ii_Predicate.is_null() && !table.partial.row(row) {
                return true;
            }
            let columns = usize::try_from(info.ii_NumIndexAttrs).unwrap_or_default();
            let numbers = info.ii_IndexAttrNumbers.iter().take(columns);
            let entry: Vec<Value> = numbers.map(|n| row[usize::try_from(*n - 1).unwrap_or_default()]).collect();
            let (mut values, mut nulls) = split(&entry);
            let check = match info.ii_Unique {
                true if asks => UNIQUE_CHECK_PARTIAL,
                true => UNIQUE_CHECK_YES,
                false => UNIQUE_CHECK_NO,
            };
            let is_new = pg_sys::index_insert(
                self.relation,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                &raw mut (*tuple).t_self,
                table.relation,
                check,
                false,
                self.info,
            );
            is_new || !asks
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened above; the lock stays until the end of the transaction.
            unsafe {
                pg_sys::index_close(self.relation, pg_sys::NoLock.cast_signed());
                pg_sys::pfree(self.info.cast());
            }
        }
    }
}
