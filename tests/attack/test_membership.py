"""security 1: the table of members belongs to somebody who does with it what he likes."""

import collections
import os
import subprocess
import time
import unittest
import unittest.mock

import psycopg2

import attack
from attack import OTHER, OWN, THIRD
from support import Cluster, call, connect, program, rows, run, value

USER = "00000000-0000-4000-8000-0000000000e1"
CLAIMS = f'{{"sub": "{USER}"}}'


class MembersCase(attack.AttackCase):
    """In every case: nothing runs with more than the rights of the table's owner, a member sees its orgs or none, and no call fails."""

    # How the table makes place for another relation.
    gone = "alter table mine.members rename to real"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.owner = cls.bare_role("owner")
        rows(cls.db, f'grant create on database "{cls.database}" to {cls.owner}')

    def setUp(self):
        super().setUp()
        rows(self.db, f"create schema mine authorization {self.owner}; grant usage on schema mine to public; set role {self.owner}")
        rows(self.db, attack.NOTE.format(schema="mine", role=self.owner))
        # In a function that may stand in an index.
        rows(self.db, """create function mine.trap(anyelement) returns boolean language plpgsql immutable as $$ begin return mine.note('a function'); end $$;
                         create function mine.same(uuid) returns uuid language plpgsql immutable as $$ begin perform mine.note('a function'); return $1; end $$;
                         grant execute on all functions in schema mine to public""")
        rows(self.db, "reset role")
        self.addCleanup(rows, self.db, f"reset role; select billing.configure_membership(null, null, null); drop owned by {self.owner} cascade; drop schema if exists mine cascade; "
                                       f'grant create on database "{self.database}" to {self.owner}')

    def table(self, definition="create table mine.members (org uuid, usr uuid)", configure=True):
        """The table, with one member, in place of what an earlier attack has left."""
        rows(self.db, """drop table if exists mine.real cascade;
            do $$ declare r record; begin
                for r in select relkind from pg_class where relnamespace = 'mine'::regnamespace and relname = 'members' loop
                    execute 'drop ' || case r.relkind when 'm' then 'materialized view' when 'f' then 'foreign table' when 'v' then 'view' else 'table' end || ' mine.members cascade';
                end loop;
            end $$""")
        rows(self.db, f"set role {self.owner}; {definition}; insert into mine.members (org, usr) values ('{OWN}', '{USER}'); reset role")
        if configure:
            rows(self.db, "select billing.configure_membership('mine.members', 'org', 'usr')")

    def evil(self, statements):
        """What the owner does."""
        session = self.session(self.owner)
        rows(session, statements)
        session.close()

    def assert_harmless(self, sees=None):
        """As it is said of the class; sees: what the member must see (None: its org, or nothing)."""
        for role in (self.member, None):
            session = self.session(role, CLAIMS)
            session.notices.clear()
            for again in range(3):
                found = value(session, "select billing.my_orgs()")
                self.assertIn(found, [sees] if sees is not None else [[], [OWN]])
                if role:
                    self.assertEqual({row.org_id for row in rows(session, "select org_id from billing.entries")}, set(found))
                    self.assertEqual({row.org_id for row in rows(session, "select org_id from billing.wallets")}, set(found))
                    for org in (OWN, OTHER, THIRD):
                        if org in found:
                            rows(session, "select * from billing.get_wallet(%s)", org)
                        else:
                            self.assert_code("42501 not_authorized", session, "select * from billing.get_wallet(%s)", org)
            self.assertEqual(self.ran(session, self.owner), [])
            session.close()
        self.db.notices.clear()
        rows(self.db, "select billing.install()")
        rows(self.db, "select * from billing.status()")
        is_super = value(self.db, "select rolsuper from pg_roles where rolname = %s", self.owner)
        rows(self.db, f"alter role {self.owner} nosuperuser")
        self.assertEqual(self.ran(self.db, self.owner), [])
        self.assertFalse(is_super)


class Members(MembersCase):
    """Whatever the owner does with the table, and puts in its place."""

    def test_other_relations_in_its_place(self):
        """security 1: a materialized view, a partition tree, a foreign table or another table in its place."""
        rows(self.db, f"create extension file_fdw; create server files foreign data wrapper file_fdw; grant usage on foreign server files to {self.owner}")
        self.addCleanup(rows, self.db, "drop extension file_fdw cascade")
        for thing in (f"create materialized view mine.members as select '{OTHER}'::uuid as org, '{USER}'::uuid as usr",
                      f"""create table mine.members (org uuid, usr uuid) partition by list (usr);
                          create table mine.part partition of mine.members default; insert into mine.members values ('{OTHER}', '{USER}')""",
                      "create foreign table mine.members (org uuid, usr uuid) server files options (program 'touch /tmp/never')",
                      f"create table mine.members (org uuid, usr uuid); insert into mine.members values ('{OTHER}', '{USER}')"):
            with self.subTest(thing):
                self.table()
                self.evil(self.gone)
                try:
                    self.evil(thing)
                except psycopg2.Error as error:
                    self.assertEqual(error.pgcode, "42501")  # A program is for superusers.
                self.assert_harmless(sees=[OWN] if "rename" in self.gone else [])

    def test_as_it_should_be(self):
        """security 1: what is tested below works where nobody does anything to it."""
        self.table()
        self.assert_harmless(sees=[OWN])

    def test_view_in_its_place(self):
        """security 1: a view with a function is put in the place of the table, which is renamed."""
        self.table()
        self.evil("""alter table mine.members rename to real;
                     create view mine.members as select org, usr from mine.real where mine.trap(usr);
                     grant select on all tables in schema mine to public""")
        self.assert_harmless(sees=[OWN])

    def test_renamed_while_a_session_is_open(self):
        """security 1: the same, with a session that has read it before."""
        self.table()
        session = self.session(self.member, CLAIMS)
        self.assertEqual(value(session, "select billing.my_orgs()"), [OWN])
        self.evil(f"""alter table mine.members rename to real; create table mine.members (org uuid, usr uuid); insert into mine.members values ('{OTHER}', '{USER}')""")
        self.assertEqual(value(session, "select billing.my_orgs()"), [OWN])
        self.evil("alter schema mine rename to yours; create schema mine; create view mine.real as select org, usr from yours.members where yours.trap(usr)")
        self.addCleanup(rows, self.db, "drop schema if exists yours cascade")
        self.assertIn(value(session, "select billing.my_orgs()"), ([], [OWN]))
        self.assertEqual(self.ran(session, self.owner), [])

    def test_expressions_of_the_owner(self):
        """security 1: indexes, predicates, checks, generated columns, statistics, rules, policies, children: whatever has an expression."""
        for what in ("create index on mine.members (mine.same(usr))", "create index on mine.members (usr) where mine.trap(1)", "create unique index on mine.members (mine.trap(org))",
                     "alter table mine.members add check (mine.trap(usr))", "alter table mine.members add column g boolean generated always as (mine.trap(1)) stored",
                     "create statistics mine.s on (mine.same(usr)), (mine.same(org)) from mine.members; analyze mine.members",
                     "create rule r as on insert to mine.members do also select mine.trap(1)",
                     "alter table mine.members enable row level security, force row level security; create policy p on mine.members using (mine.trap(usr))",
                     "alter table mine.members enable row level security, force row level security; create policy p on mine.members as restrictive using (mine.trap(1))",
                     "create table mine.child (c int default 1) inherits (mine.members); alter table mine.child enable row level security, force row level security; "
                     "create policy p on mine.child using (mine.trap(usr)); create index on mine.child (mine.same(usr))",
                     "alter table mine.members alter column usr set default mine.same(null), alter org set default mine.same(null)",
                     "create trigger t before insert on mine.members for each row execute function suppress_redundant_updates_trigger()"):
            with self.subTest(what):
                self.table()
                try:
                    self.evil(what)
                except psycopg2.Error:
                    pass
                self.evil("set enable_seqscan = off")
                self.assert_harmless()

    def test_comes_back_while_it_is_read(self):
        """security 1: what the owner put into an index changes the table while it is read, and asks for its orgs in the middle of that."""
        rows(self.db, f"grant usage on schema billing to {self.owner}; grant execute on function billing.my_orgs() to {self.owner}")
        for change in ("execute 'grant select on mine.members to public'; execute 'revoke select on mine.members from public'",
                       "execute 'alter schema mine rename to his'; execute 'alter schema his rename to mine'", "execute 'analyze mine.members'"):
            with self.subTest(change):
                self.table()
                self.evil(f"""create or replace function mine.inner() returns boolean language plpgsql as $$ begin
                                  {change}; perform billing.my_orgs(); perform mine.note('inside'); return true; end $$;
                              create or replace function mine.back(int) returns boolean language plpgsql immutable as $$ begin
                                  return mine.inner(); exception when others then return true; end $$;
                              create index on mine.members (org) where mine.back(1)""")
                self.assert_harmless()

    def test_domains(self):
        """security 1: checks of a domain of the columns, there from the beginning or added later."""
        self.table("create domain mine.who as uuid check (mine.trap(value)); create domain mine.deep as mine.who check (mine.trap(value)); "
                   "create table mine.members (org mine.deep, usr mine.deep)")
        self.assert_harmless(sees=[OWN])

    def test_domain_is_checked_later(self):
        """security 1: a check that is added to the domain when the table is configured."""
        self.table("create domain mine.who as uuid; create table mine.members (org mine.who, usr mine.who)")
        self.evil("alter domain mine.who add check (mine.trap(value)) not valid")
        self.assert_harmless(sees=[OWN])

    def test_types_operators_and_collations(self):
        """security 1: operators, casts and collations of the owner for the types of the columns."""
        self.table("create table mine.members (org uuid, usr text)")
        self.evil("""create function mine.eq(text, text) returns boolean language plpgsql immutable as $$ begin return mine.note('an operator'); end $$;
                     create function mine.eq(uuid, uuid) returns boolean language plpgsql immutable as $$ begin return mine.note('an operator'); end $$;
                     create operator mine.= (leftarg = text, rightarg = text, function = mine.eq);
                     create operator mine.= (leftarg = uuid, rightarg = uuid, function = mine.eq);
                     create collation mine.c from "C"; alter table mine.members alter column usr type text collate mine.c""")
        self.assert_harmless()
        rows(self.db, "select billing.configure_membership('mine.members', 'org', 'usr')")
        self.assert_harmless(sees=[OWN])

    def test_types_of_the_owner(self):
        """security 1: a column of a type of the owner, with a cast that is a function."""
        self.table()
        self.evil("""create type mine.odd as enum ('a'); create function mine.cast(mine.odd) returns uuid language plpgsql immutable as $$ begin perform mine.note('a cast'); return null; end $$;
                     create cast (mine.odd as uuid) with function mine.cast(mine.odd) as implicit;
                     alter table mine.members alter column usr type mine.odd using 'a'::mine.odd""")
        self.assert_harmless(sees=[])

    def test_columns_change(self):
        """security 1, access 10: a column that is renamed, retyped or dropped shows nothing, and is no error."""
        for what in ("alter table mine.members rename usr to person", "alter table mine.members alter usr type text", "alter table mine.members alter org type text",
                     "alter table mine.members drop org", "alter table mine.members rename usr to x; alter table mine.members rename org to usr; alter table mine.members rename x to org",
                     f"revoke all on mine.members from {self.owner}", "alter table mine.members set unlogged"):
            with self.subTest(what):
                self.table()
                self.evil(what)
                self.assert_harmless()

    def test_schema_in_its_place(self):
        """security 1: the schema is renamed, and another one put in its place."""
        self.table()
        self.evil(f"""alter schema mine rename to yours; create schema mine; create table mine.members (org uuid, usr uuid); insert into mine.members values ('{OTHER}', '{USER}');
                      grant all on schema mine to public; grant all on mine.members to public""")
        self.addCleanup(rows, self.db, "drop schema if exists yours cascade")
        self.assert_harmless(sees=[OWN])

    def test_owner_changes(self):
        """security 1: the table is given to somebody else, who has no more rights by that."""
        self.table()
        rows(self.db, f"alter table mine.members owner to {self.stranger}")
        self.assert_harmless()
        rows(self.db, f"alter table mine.members owner to {self.owner}")

    def test_none_any_more(self):
        """access 10: with null three times there is no table of members any more."""
        self.table()
        rows(self.db, "select billing.configure_membership(null, null, null)")
        self.assert_harmless(sees=[])

    def test_what_may_not_be_configured(self):
        """security 1: only an ordinary or partitioned table, columns of built-in types, and the owner of the extension says so."""
        self.table(configure=False)
        self.evil("create view mine.v as select * from mine.members; create materialized view mine.m as select * from mine.members; create type mine.e as enum ('a'); "
                  "create table mine.t (org uuid, usr mine.e)")
        for relation in ("v", "m", "t"):
            self.assert_code("22023 invalid_argument", self.db, f"select billing.configure_membership('mine.{relation}', 'org', 'usr')")
        session = self.connect()
        rows(session, "create temp table x (org uuid, usr uuid)")
        self.assert_code("22023 invalid_argument", session, "select billing.configure_membership('x', 'org', 'usr')")
        for role in (self.service, self.member, self.stranger, self.owner):
            rows(self.db, f"grant usage on schema billing to {role}; grant execute on function billing.configure_membership to {role}")
            self.assert_code("42501", self.session(role), "select billing.configure_membership('mine.members', 'org', 'usr')")

    def test_restored_elsewhere(self):
        """security 1: in another database name and owner decide; a table of that name which belongs to another does not count."""
        self.table()
        dump = run(program("pg_dump"), "-d", self.database)
        for owner, expected in ((self.owner, [OWN]), (self.stranger, [])):
            with self.subTest(owner):
                database = connect(self.new_database())
                self.addCleanup(database.close)
                subprocess.run([program("psql"), "-X", "-q", "-d", database.info.dbname], input=dump, text=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                rows(database, f"alter table mine.members owner to {owner}; grant usage on schema mine to {owner}")
                if not expected:
                    rows(database, f"update mine.members set org = '{OTHER}'")
                rows(database, f"set role {self.member}; select set_config('request.jwt.claims', '{CLAIMS}', false)")
                self.assertEqual(value(database, "select billing.my_orgs()"), expected)
                rows(database, "reset role")
                rows(database, "select billing.install()")
                rows(database, f"set role {self.member}")
                self.assertEqual(value(database, "select billing.my_orgs()"), expected)


class Gone(MembersCase):
    """The table is dropped. On a server of its own: what goes wrong here has taken the whole server down."""

    gone = "drop table mine.members"
    test_other_relations_in_its_place = Members.test_other_relations_in_its_place

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster({"fsync": "off"})
        cls.addClassCleanup(cls.cluster.remove)
        cls.cluster.start()
        patched = unittest.mock.patch.dict(os.environ, PGHOST=cls.cluster.host, PGPORT=cls.cluster.port)
        patched.start()
        cls.addClassCleanup(patched.stop)
        super().setUpClass()

    def setUp(self):
        self.reconnect()
        super().setUp()

    @classmethod
    def reconnect(cls):
        """After a crash of the server, the class's connections are made anew."""
        for name, database in (("db", cls.database), ("admin", None)):
            try:
                rows(getattr(cls, name), "select")
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                for attempt in range(100):
                    try:
                        setattr(cls, name, connect(database))
                        cls.db.notices = collections.deque()
                        break
                    except psycopg2.OperationalError:
                        time.sleep(0.1)

    @classmethod
    def tearDownClass(cls):
        cls.reconnect()
        super().tearDownClass()

    def test_dropped(self):
        """security 1: members see nothing, and no call fails; the table is dropped with a session open that has read it, or before one begins."""
        self.table()
        session = self.session(self.member, CLAIMS)
        self.assertEqual(value(session, "select billing.my_orgs()"), [OWN])
        self.evil("drop table mine.members")
        self.assertEqual(value(session, "select billing.my_orgs()"), [])
        self.assert_harmless(sees=[])

    def test_no_such_table(self):
        """security 1: an oid that is no table's is refused."""
        for number in (0, 1, 4294967295):
            self.assert_code("22023 invalid_argument", self.db, f"select billing.configure_membership({number}::oid::regclass, 'a', 'b')")

    def test_another_of_its_name(self):
        """security 1: a table that is dropped, and made again by that name, also by another role that may create there, is another table."""
        self.table()
        self.evil(f"drop table mine.members; grant create, usage on schema mine to {self.stranger}")
        session = self.session(self.stranger)
        rows(session, f"create table mine.members (org uuid, usr uuid); insert into mine.members values ('{OTHER}', '{USER}'); grant all on mine.members to public")
        self.assert_harmless(sees=[])
        rows(self.db, "drop table mine.members")
        self.evil(f"create table mine.members (org uuid, usr uuid); insert into mine.members values ('{OTHER}', '{USER}')")
        self.assert_harmless(sees=[])


class Deputies(attack.AttackCase):
    """rule 10, security 1: who is calling is told by the role as which a call is made, and by nothing that lies further out."""

    def steal(self, role):
        """Functions of a member of no org that take what they can get of another org."""
        rows(self.db, f"grant usage, create on schema app to {role}; grant usage on schema app to public")
        session = self.session(role)
        rows(session, f"""create table app.stolen (how text, what text);
            create function app.take(how text) returns void language plpgsql security definer as $$ begin
                begin insert into app.stolen select how, w::text from billing.get_wallet('{OTHER}') w; exception when insufficient_privilege then null; end;
                begin insert into app.stolen select how, w::text from billing.credit_history('{OTHER}') w; exception when insufficient_privilege then null; end;
                begin insert into app.stolen select how, w::text from billing.start_purchase('{OTHER}', 'small', 'USD') w; exception when insufficient_privilege then null; end;
                begin insert into app.stolen select how, w::text from billing.configure_auto_recharge('{OTHER}', 7, 'small', 'USD', monthly_ceiling => 1000) w;
                exception when insufficient_privilege then null; end;
            end $$;
            create function app.key(uuid) returns uuid language plpgsql immutable as $$ begin perform app.take('an index'); return $1; end $$;
            create table app.bait (org uuid);
            create index on app.bait (app.key(org));
            insert into app.bait values ('{OWN}')""")
        self.addCleanup(rows, self.db, "drop table app.bait, app.stolen; drop function app.key, app.take")
        if role == self.member:
            self.assertEqual(rows(session, "select * from app.stolen"), [], "by itself, it gets nothing")

    def test_maintenance(self):
        """rule 10: ANALYZE and REINDEX by a superuser (as autovacuum does by itself) do not let an index function of a member see other orgs."""
        self.steal(self.member)
        rows(self.db, "analyze app.bait; reindex table app.bait")
        self.assertEqual(rows(self.db, "select distinct how, left(what, 100) as what from app.stolen order by 1, 2 limit 5"), [])

    def test_definer_functions(self):
        """rule 10: a SECURITY DEFINER function of a member that a service or a superuser calls sees what the member may see."""
        self.steal(self.member)
        for role in (self.service, None):
            rows(self.session(role), "select app.take('a call')")
        self.assertEqual(rows(self.db, "select distinct how, left(what, 100) as what from app.stolen order by 1, 2 limit 5"), [])

    def test_definer_functions_of_a_service(self):
        """rule 10: a SECURITY DEFINER function of the app's service may be called by anybody, and reads what the service may."""
        self.steal(self.service)
        rows(self.db, f"grant usage on schema app to {self.stranger}; delete from app.stolen")
        rows(self.session(self.stranger), "select app.take('a call')")
        self.assertEqual(value(self.db, "select count(*) from app.stolen where what like %s", f"%{OTHER}%"), 3)

    def test_another_user_of_the_session(self):
        """rule 10: what was prepared, or opened, as a service does not go on as one for a member."""
        session = self.session(self.service, autocommit=False)
        rows(session, f"""prepare take as select * from billing.grant_credits('{OTHER}', 1);
                          prepare look as select org_id from billing.entries;
                          prepare wallet as select * from billing.get_wallet('{OTHER}')""")
        for _ in range(6):
            for name in ("take", "look", "wallet"):
                rows(session, f"execute {name}")
        rows(session, f"declare late cursor with hold for select org_id from billing.wallets where org_id = '{OWN}'")
        session.commit()
        rows(session, f"set role {self.member}; select set_config('request.jwt.claims', '{{\"org_id\": \"{OWN}\"}}', false)")
        session.commit()
        self.assertEqual({row.org_id for row in rows(session, "execute look")}, {OWN})
        for name in ("take", "wallet"):
            self.assert_code("42501", session, f"execute {name}")
            session.rollback()
        rows(session, "set row_security = off")
        self.assert_code("42501", session, "select * from billing.entries")
        session.rollback()

    def test_who_one_is_afterwards(self):
        """rule 10: after each call, whether it ended well, or with an error that was caught, or was left half-way, the caller is who it was."""
        session = self.connect(autocommit=False)
        checked = 0
        for routine in rows(self.db, attack.ROUTINES):
            if routine.kind == "p":
                continue
            statement = self.statement(routine)
            in_list = statement.replace("select * from", "select")
            for role in (self.service, self.member):
                rows(session, f"savepoint before; set local role {role}")
                for again in (statement, in_list):
                    rows(session, f"""do $do$ begin
                        begin execute $call${again}$call$; exception when others then null; end;
                        if current_user <> '{role}' or current_setting('role') <> '{role}' then raise exception 'now %', current_user; end if; end $do$""")
                for text in (statement, in_list):
                    rows(session, "savepoint half")
                    try:
                        rows(session, f"declare half_way cursor for {text}")
                        rows(session, "fetch 1 from half_way")
                        self.assertEqual(value(session, "select current_user"), role, routine.signature)
                        rows(session, "close half_way")
                    except psycopg2.Error:
                        rows(session, "rollback to half")
                    self.assertEqual(value(session, "select current_user"), role, routine.signature)
                    checked += 1
                rows(session, "rollback to before; release before")
        session.rollback()
        self.assertGreater(checked, 400)

    def test_levels_that_are_rolled_back(self):
        """security 4: a level, a membership or an attribute of a role that a transaction takes back is not remembered."""
        for statement in (f"select billing.grant_access('{self.stranger}', 'service')", f"grant {self.service} to {self.stranger}", f"alter role {self.stranger} superuser"):
            for savepoint in ("savepoint s", "select"):
                with self.subTest(statement, savepoint=savepoint):
                    session = self.connect(autocommit=False)
                    rows(session, f"grant usage on schema billing to {self.stranger}; grant execute on all functions in schema billing to {self.stranger}")
                    rows(session, savepoint)
                    rows(session, statement)
                    rows(session, f"set local role {self.stranger}")
                    call(session, "grant_credits", OWN, 1)
                    if savepoint == "select":
                        session.rollback()
                        rows(session, f"grant usage on schema billing to {self.stranger}; grant execute on all functions in schema billing to {self.stranger}")
                    else:
                        rows(session, "rollback to s")
                    rows(session, f"set local role {self.stranger}")
                    self.assert_code("42501 no_level", session, f"select * from billing.grant_credits('{OWN}', 1)")
                    session.close()

    def test_levels_taken_from_an_open_session(self):
        """security 4: what is revoked holds from the next call on, in sessions that have called before; so does a membership, and the right to inherit it."""
        for give, take in ((f"select billing.grant_access('{self.stranger}', 'service')", f"select billing.revoke_access('{self.stranger}')"),
                           (f"grant {self.service} to {self.stranger}", f"revoke {self.service} from {self.stranger}")):
            rows(self.db, give)
            rows(self.db, f"grant usage on schema billing to {self.stranger}; grant execute on all functions in schema billing to {self.stranger}")
            session = self.session(self.stranger)
            call(session, "grant_credits", OWN, 1)
            rows(self.db, take)
            rows(self.db, f"grant usage on schema billing to {self.stranger}; grant execute on all functions in schema billing to {self.stranger}")
            self.assert_code("42501 no_level", session, f"select * from billing.grant_credits('{OWN}', 1)")
            session.close()

    def test_functions_of_ours_are_not_theirs(self):
        """A role with a level changes, replaces, comments on and depends on nothing of ours."""
        for role in (self.service, self.member, self.stranger):
            rows(self.db, f"grant usage on schema billing to {role}")
            session = self.session(role)
            for statement in ("alter function billing.clock() set search_path = public", "alter function billing.clock() rename to x", "comment on table billing.ledger is 'x'",
                              "create or replace function billing.clock() returns timestamptz language sql as 'select now()'", "alter table billing.ledger add x int",
                              "create index on billing.ledger (metric)", "create rule r as on insert to billing.ledger do nothing", "drop function billing.clock()",
                              "alter type billing.payment add attribute x int", "create policy p on billing.ledger using (true)", "cluster billing.ledger",
                              "create function x() returns bigint language c as '$libdir/pg_billing', 'service_gate'", "alter extension pg_billing add function app.note(text)",
                              "drop extension pg_billing cascade", "alter table billing.ledger disable trigger all", "alter schema billing rename to x",
                              "create publication p for table billing.ledger", "create statistics s on org_id, metric from billing.ledger"):
                with self.assertRaises(psycopg2.Error, msg=f"{role}: {statement}"):
                    rows(session, statement)


if __name__ == "__main__":
    unittest.main()
