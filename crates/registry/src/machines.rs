//! Machines: one row each, from the intent to create until nothing of it is left.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;
use testyard_model::{MachineId, MachineInfo, MachineName, MachineSpec, MachineState, Problem};

use crate::error::RegistryError;
use crate::identity::{HostIdentity, ProcessIdentity};
use crate::machine_errors::{DestroyError, RenameError, ReserveError, TransitionError};
use crate::registry::Registry;

/// What is known of a machine before it is made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMachine {
    /// Its name; unique in the home.
    pub name: MachineName,
    /// What it is to be.
    pub spec: MachineSpec,
    /// Why this backend, when it was chosen by `auto`.
    pub backend_reason: Option<String>,
    /// Now, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// When it is to be deleted, the same way.
    pub expires_ms: Option<i64>,
}

/// A machine as it is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineRow {
    /// Its stable id.
    pub id: MachineId,
    /// Its name.
    pub name: MachineName,
    /// Where it is in its life.
    pub state: MachineState,
    /// What it was asked to be.
    pub spec: MachineSpec,
    /// Why this backend, when it was chosen by `auto`.
    pub backend_reason: Option<String>,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// When it is to be deleted, the same way.
    pub expires_ms: Option<i64>,
    /// Why it is `failed`.
    pub cause: Option<Problem>,
    /// Where it was last created or started; its process numbers mean something only there.
    pub host: HostIdentity,
    /// Its supervisor, once recorded.
    pub supervisor: Option<ProcessIdentity>,
    /// What the agent said of itself.
    pub agent: Option<Value>,
    /// How often its upper layer was sealed.
    pub generation: u64,
}

impl MachineRow {
    /// The machine as `list` and `info` show it. `limits` comes from its backend.
    #[must_use]
    pub fn into_info(self, limits: Vec<String>) -> MachineInfo {
        MachineInfo {
            id: self.id,
            name: self.name,
            state: self.state,
            spec: self.spec,
            backend_reason: self.backend_reason,
            created_ms: self.created_ms,
            cause: self.cause,
            supervisor_pid: self.supervisor.map(|process| process.pid),
            limits,
        }
    }
}

/// Creating and finding.
impl Registry {
    /// Writes down the intent to make a machine: it is `creating` from now on, and its name is taken.
    ///
    /// # Errors
    /// The name is taken, by whatever machine in whatever state; or the registry failed.
    pub fn reserve_name(&self, machine: &NewMachine) -> Result<MachineId, ReserveError> {
        let host = self.host()?.clone();
        let outcome = self.write("reserve a machine's name", |transaction| {
            if let Some(other) = holder(transaction, &machine.name)? {
                return Ok(Err(other));
            }
            let mut insert = transaction.prepare_cached(
                "INSERT INTO machine
                   (id, name, state, spec, backend_reason, created_ms, expires_ms, host_id, boot_id, pid_namespace)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?;
            let id = MachineId::from_bits(crate::leases::random_bits());
            insert.execute(params![
                id.as_str(),
                machine.name.as_str(),
                MachineState::Creating.as_str(),
                json(&machine.spec)?,
                machine.backend_reason,
                machine.created_ms,
                machine.expires_ms,
                host.host_id,
                host.boot_id,
                host.pid_namespace.cast_signed(),
            ])?;
            Ok(Ok(id))
        })?;
        outcome.or_else(|(id, state)| {
            let (id, state) = self.decode_holder(&id, &state)?;
            Err(ReserveError::AlreadyExists { name: machine.name.clone(), id, state })
        })
    }

    /// Every machine in the home, in whatever state, by name.
    ///
    /// # Errors
    /// The registry failed, or a row cannot be read.
    pub fn list(&self) -> Result<Vec<MachineRow>, RegistryError> {
        let raw = self.read("list the machines", |connection| {
            let mut query = connection.prepare_cached(&format!("{SELECT} ORDER BY name"))?;
            query.query_map([], RawMachine::read)?.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        raw.into_iter().map(|row| row.decode(self)).collect()
    }

    /// The machine of this name, in whatever state.
    ///
    /// # Errors
    /// The registry failed, or the row cannot be read.
    pub fn find(&self, name: &MachineName) -> Result<Option<MachineRow>, RegistryError> {
        self.load_where("name", name.as_str())
    }

    /// The machine with this id.
    ///
    /// # Errors
    /// The registry failed, or the row cannot be read.
    pub fn load(&self, id: &MachineId) -> Result<Option<MachineRow>, RegistryError> {
        self.load_where("id", id.as_str())
    }

    fn load_where(&self, column: &'static str, value: &str) -> Result<Option<MachineRow>, RegistryError> {
        self.read("find a machine", |connection| {
            let mut query = connection.prepare_cached(&format!("{SELECT} WHERE {column} = ?1"))?;
            query.query_row([value], RawMachine::read).optional()
        })?
        .map(|row| row.decode(self))
        .transpose()
    }

    fn decode_holder(&self, id: &str, state: &str) -> Result<(MachineId, MachineState), RegistryError> {
        let row = || format!("machine {id}");
        let state = MachineState::from_word(state).ok_or_else(|| self.unreadable(row(), "state", state))?;
        Ok((id.parse().map_err(|_| self.unreadable(row(), "id", id))?, state))
    }
}

/// Changing.
impl Registry {
    /// Moves a machine from one state to the next, if it is still there. Leaving `failed` forgets its cause.
    ///
    /// # Errors
    /// No machine goes this way, this one is not in that state, or it is gone; or the registry failed.
    pub fn transition(&self, id: &MachineId, from: MachineState, to: MachineState) -> Result<(), TransitionError> {
        if !from.may_become(to) {
            return Err(TransitionError::Forbidden { from, to });
        }
        self.change_state(id, from, to, None)
    }

    /// Moves a machine to `failed`, with why.
    ///
    /// # Errors
    /// As [`Registry::transition`].
    pub fn record_failure(&self, id: &MachineId, from: MachineState, cause: &Problem) -> Result<(), TransitionError> {
        let to = MachineState::Failed;
        if !from.may_become(to) {
            return Err(TransitionError::Forbidden { from, to });
        }
        self.change_state(id, from, to, Some(cause))
    }

    /// Writes down the intent to delete a machine, whatever its state; gives the state it was in.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn begin_deletion(&self, id: &MachineId) -> Result<MachineState, TransitionError> {
        let found = self.write_end("begin a deletion", |transaction| {
            let found: Option<String> = transaction
                .prepare_cached("SELECT state FROM machine WHERE id = ?1")?
                .query_row([id.as_str()], |row| row.get(0))
                .optional()?;
            transaction
                .prepare_cached("UPDATE machine SET state = ?2 WHERE id = ?1 AND state <> ?2")?
                .execute([id.as_str(), MachineState::Deleting.as_str()])?;
            Ok(found)
        })?;
        let found = found.ok_or_else(|| TransitionError::NotFound { id: id.clone() })?;
        Ok(MachineState::from_word(&found)
            .ok_or_else(|| self.unreadable(format!("machine {id}"), "state", found.as_str()))?)
    }

    /// Removes the row of a machine of which nothing is left, with its slots and leases. No row is no error.
    ///
    /// # Errors
    /// It is not `deleting`, or resources of its are still recorded; or the registry failed.
    pub fn destroy(&self, id: &MachineId) -> Result<(), DestroyError> {
        enum Kept {
            State(String, String),
            Owner(String, u64, String),
        }
        let kept = self.write_end("remove a machine's row", |transaction| {
            let row = transaction
                .prepare_cached("SELECT name, state FROM machine WHERE id = ?1")?
                .query_row([id.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
                .optional()?;
            let Some((name, state)) = row else { return Ok(None) };
            if state != MachineState::Deleting.as_str() {
                return Ok(Some(Kept::State(name, state)));
            }
            let (count, first): (i64, Option<String>) = transaction
                .prepare_cached("SELECT count(*), min(kind || ' ' || place) FROM resource WHERE machine = ?1")?
                .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if let Some(first) = first {
                return Ok(Some(Kept::Owner(name, count.cast_unsigned(), first)));
            }
            transaction.prepare_cached("DELETE FROM machine WHERE id = ?1")?.execute([id.as_str()])?;
            Ok(None)
        })?;
        let name = |name: &str| -> Result<MachineName, RegistryError> {
            name.parse().map_err(|_| self.unreadable(format!("machine {id}"), "name", name))
        };
        match kept {
            None => Ok(()),
            Some(Kept::Owner(owner, count, first)) => {
                Err(DestroyError::StillOwns { name: name(&owner)?, count, first })
            }
            Some(Kept::State(owner, state)) => {
                let (_, state) = self.decode_holder(id.as_str(), &state)?;
                Err(DestroyError::NotDeleting { name: name(&owner)?, state })
            }
        }
    }

    /// Gives a machine another name; its id, and so its folders and sockets, stay.
    ///
    /// # Errors
    /// There is none of the old name, the new one is taken; or the registry failed.
    pub fn rename(&self, old: &MachineName, new: &MachineName) -> Result<(), RenameError> {
        let outcome = self.write("rename a machine", |transaction| {
            let Some((id, _)) = holder(transaction, old)? else { return Ok(Some(None)) };
            if let Some(other) = holder(transaction, new)?.filter(|(other, _)| *other != id) {
                return Ok(Some(Some(other)));
            }
            transaction.prepare_cached("UPDATE machine SET name = ?2 WHERE id = ?1")?.execute([&id, new.as_str()])?;
            Ok(None)
        })?;
        match outcome {
            None => Ok(()),
            Some(None) => Err(RenameError::NotFound { name: old.clone() }),
            Some(Some((id, state))) => {
                let (_, state) = self.decode_holder(&id, &state)?;
                Err(RenameError::AlreadyExists { name: new.clone(), state })
            }
        }
    }

    /// Writes down who supervises a machine, on this host and boot; `None` once it has ended.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn record_supervisor(
        &self,
        id: &MachineId,
        supervisor: Option<ProcessIdentity>,
    ) -> Result<(), TransitionError> {
        let host = self.host()?.clone();
        let (pid, ticks) = supervisor.map(|process| (process.pid, process.start_ticks.cast_signed())).unzip();
        self.update(
            id,
            "UPDATE machine SET supervisor_pid = ?2, supervisor_start_ticks = ?3,
                                host_id = ?4, boot_id = ?5, pid_namespace = ?6 WHERE id = ?1",
            params![id.as_str(), pid, ticks, host.host_id, host.boot_id, host.pid_namespace.cast_signed()],
        )
    }

    /// Writes down what the agent says of itself.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn record_agent(&self, id: &MachineId, agent: &Value) -> Result<(), TransitionError> {
        self.update(id, "UPDATE machine SET agent = ?2 WHERE id = ?1", params![id.as_str(), agent.to_string()])
    }

    /// Sets when a machine is to be deleted, in milliseconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn record_expiry(&self, id: &MachineId, expires_ms: Option<i64>) -> Result<(), TransitionError> {
        self.update(id, "UPDATE machine SET expires_ms = ?2 WHERE id = ?1", params![id.as_str(), expires_ms])
    }

    /// Writes down that the upper layer was sealed into this generation.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn record_generation(&self, id: &MachineId, generation: u64) -> Result<(), TransitionError> {
        self.update(
            id,
            "UPDATE machine SET generation = ?2 WHERE id = ?1",
            params![id.as_str(), generation.cast_signed()],
        )
    }

    fn update(&self, id: &MachineId, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<(), TransitionError> {
        let changed =
            self.read("change a machine's row", |connection| connection.prepare_cached(sql)?.execute(values))?;
        if changed == 0 { Err(TransitionError::NotFound { id: id.clone() }) } else { Ok(()) }
    }

    fn change_state(
        &self,
        id: &MachineId,
        expected: MachineState,
        to: MachineState,
        cause: Option<&Problem>,
    ) -> Result<(), TransitionError> {
        let found = self.write_end("change a machine's state", |transaction| {
            let changed = transaction
                .prepare_cached("UPDATE machine SET state = ?3, cause = ?4 WHERE id = ?1 AND state = ?2")?
                .execute(params![id.as_str(), expected.as_str(), to.as_str(), cause.map(json).transpose()?])?;
            if changed == 1 {
                return Ok(None);
            }
            let mut query = transaction.prepare_cached("SELECT name, state FROM machine WHERE id = ?1")?;
            query
                .query_row([id.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
                .optional()
                .map(Some)
        })?;
        let Some(found) = found else { return Ok(()) };
        let Some((name, state)) = found else { return Err(TransitionError::NotFound { id: id.clone() }) };
        let (_, found) = self.decode_holder(id.as_str(), &state)?;
        let name = name.parse().map_err(|_| self.unreadable(format!("machine {id}"), "name", name.as_str()))?;
        Err(TransitionError::WrongState { name, expected, found })
    }
}

const SELECT: &str = "SELECT id, name, state, spec, backend_reason, created_ms, expires_ms, cause, host_id, boot_id,
    pid_namespace, supervisor_pid, supervisor_start_ticks, agent, generation FROM machine";

/// Id and state, as text, of the machine that has this name.
fn holder(connection: &Connection, name: &MachineName) -> rusqlite::Result<Option<(String, String)>> {
    connection
        .prepare_cached("SELECT id, state FROM machine WHERE name = ?1")?
        .query_row([name.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// A value of ours as a column's JSON.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// A row's columns, before they are understood.
struct RawMachine {
    id: String,
    name: String,
    state: String,
    spec: String,
    backend_reason: Option<String>,
    created_ms: i64,
    expires_ms: Option<i64>,
    cause: Option<String>,
    host: HostIdentity,
    supervisor: Option<ProcessIdentity>,
    agent: Option<String>,
    generation: u64,
}

impl RawMachine {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let pid: Option<i32> = row.get(11)?;
        let ticks: Option<i64> = row.get(12)?;
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            state: row.get(2)?,
            spec: row.get(3)?,
            backend_reason: row.get(4)?,
            created_ms: row.get(5)?,
            expires_ms: row.get(6)?,
            cause: row.get(7)?,
            host: HostIdentity::of_columns(row, 8)?,
            supervisor: pid.zip(ticks).map(|(pid, ticks)| ProcessIdentity { pid, start_ticks: ticks.cast_unsigned() }),
            agent: row.get(13)?,
            generation: row.get::<_, i64>(14)?.cast_unsigned(),
        })
    }

    fn decode(self, registry: &Registry) -> Result<MachineRow, RegistryError> {
        let (id, state) = registry.decode_holder(&self.id, &self.state)?;
        let unreadable =
            |column: &'static str, text: &str| registry.unreadable(format!("machine {}", self.id), column, text);
        let read_optional = |column: &'static str, text: &Option<String>| -> Result<Option<Value>, RegistryError> {
            text.as_deref().map(|text| serde_json::from_str(text).map_err(|_| unreadable(column, text))).transpose()
        };
        let cause = self.cause.as_deref();
        Ok(MachineRow {
            id,
            name: self.name.parse().map_err(|_| unreadable("name", &self.name))?,
            state,
            spec: serde_json::from_str(&self.spec).map_err(|_| unreadable("spec", &self.spec))?,
            cause: cause.map(|t| serde_json::from_str(t).map_err(|_| unreadable("cause", t))).transpose()?,
            agent: read_optional("agent", &self.agent)?,
            backend_reason: self.backend_reason,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            host: self.host,
            supervisor: self.supervisor,
            generation: self.generation,
        })
    }
}
