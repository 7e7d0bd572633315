import {mkdir, readdir, readFile, stat, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {FileRecords} from '../../src/journal/file-records.ts';
import {parseRecord, type SandboxRecord} from '../../src/sandbox/records.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';

const created: SandboxRecord = {
	id: 'a',
	request: {
		pod: {name: 'web', namespace: 'shop'},
		instanceName: 'podvm-web-a',
		vcpus: 2,
		vcpusFrom: 'configuration',
		memoryMib: 2048,
		memoryFrom: 'annotation',
	},
	network: {
		netnsPath: '/run/netns/web',
		podIp: '10.0.0.5/24',
		podHwAddr: '0a:58:0a:00:00:05',
		interface: 'eth0',
		workerNodeIp: '192.168.122.10/24',
		tunnelType: 'vxlan',
		routes: [],
		neighbors: [],
		mtu: 1450,
		index: 0,
		vxlanPort: 4789,
		vxlanId: 555_000,
		dedicated: false,
		externalNetViaPodVm: false,
	},
	state: 'created',
};
const creating: SandboxRecord = {id: 'a', request: created.request, state: 'creating', netnsPath: '/run/netns/web'};
const running: SandboxRecord = {
	...created,
	state: 'running',
	vm: {sandboxId: 'a', name: 'podvm-web-a', uuid: 'u', mac: '52:00:00:00:00:00'},
	address: '192.168.122.20',
};

test('a record is read as it was written, and the last one counts', async t => {
	const podsDir = join(await directoryOf(t), 'pods');
	const records = new FileRecords(podsDir, recordingLog());
	t.deepEqual(await records.readAll(), []);
	await records.write(creating);
	t.deepEqual(await records.readAll(), [creating]);
	await records.write(created);
	t.deepEqual(await records.readAll(), [created]);
	await records.write(running);
	await records.write({...created, id: 'b', state: 'stopping'});
	t.deepEqual(
		[...(await records.readAll())].sort((one, other) => one.id.localeCompare(other.id)),
		[running, {...created, id: 'b', state: 'stopping'}],
	);
	t.deepEqual(await records.read('a'), running);
	await records.remove('a');
	await records.remove('a');
	t.is(await records.read('a'), undefined);
	await records.remove('b');
	t.deepEqual(await records.readAll(), []);
	t.deepEqual(await readdir(podsDir), []);
});

test('only the owner can read a record, and no temporary file stays', async t => {
	const podsDir = await directoryOf(t);
	await new FileRecords(podsDir, recordingLog()).write(created);
	t.is((await stat(join(podsDir, 'a'))).mode & 0o777, 0o700);
	t.is((await stat(join(podsDir, 'a', 'sandbox.json'))).mode & 0o777, 0o600);
	t.deepEqual(await readdir(join(podsDir, 'a')), ['sandbox.json']);
});

test('the temporary file of a daemon that was killed during a write is removed with the record', async t => {
	const podsDir = join(await directoryOf(t), 'pods');
	const records = new FileRecords(podsDir, recordingLog());
	await mkdir(join(podsDir, 'a'), {recursive: true});
	await writeFile(join(podsDir, 'a', '.14247b2a'), '{"version":1,');
	await records.remove('a');
	t.deepEqual(await readdir(podsDir), []);
});

test('foreign files in the directory of the sandbox are not removed with the record', async t => {
	const podsDir = await directoryOf(t);
	const records = new FileRecords(podsDir, recordingLog());
	await records.write(created);
	await writeFile(join(podsDir, 'a', 'agent.ttrpc'), '');
	await records.remove('a');
	t.deepEqual(await readdir(join(podsDir, 'a')), ['agent.ttrpc']);
});

for (const [kind, text] of [
	['torn', JSON.stringify({version: 1, ...created}).slice(0, 100)],
	['empty', ''],
	['of another sandbox', JSON.stringify({version: 1, ...created, id: 'b'})],
	['of an unknown version', JSON.stringify({version: 0, ...created})],
	['without its network', JSON.stringify({version: 1, ...created, network: undefined})],
	['creating without its namespace', JSON.stringify({version: 1, ...creating, netnsPath: ''})],
	['running without its VM', JSON.stringify({version: 1, ...running, vm: undefined})],
	['in an unknown state', JSON.stringify({version: 1, ...created, state: 'dreaming'})],
	['something else', '[1, null]'],
] as const) {
	test(`a record that is ${kind} is set aside and reported, and the others are read`, async t => {
		const podsDir = await directoryOf(t);
		const log = recordingLog();
		const records = new FileRecords(podsDir, log);
		await mkdir(join(podsDir, 'a'));
		await writeFile(join(podsDir, 'a', 'sandbox.json'), text);
		await records.write({...created, id: 'c'});
		t.deepEqual(await records.readAll(), [{...created, id: 'c'}]);
		t.is(await readFile(join(podsDir, 'a', 'sandbox.json.bad'), 'utf8'), text);
		t.deepEqual(
			log.lines.map(({level, message}) => [level, message]),
			[['error', 'a damaged or foreign sandbox record was renamed']],
		);
	});

	test(`a record that is ${kind} is set aside when it is read alone`, async t => {
		const podsDir = await directoryOf(t);
		const records = new FileRecords(podsDir, recordingLog());
		await mkdir(join(podsDir, 'a'));
		await writeFile(join(podsDir, 'a', 'sandbox.json'), text);
		t.is(await records.read('a'), undefined);
		t.deepEqual(await readdir(join(podsDir, 'a')), ['sandbox.json.bad']);
	});
}

test('any text is a record or data loss, and nothing else', t => {
	t.notThrows(() =>
		fc.assert(
			fc.property(
				fc.oneof(
					fc.string(),
					fc.json(),
					fc.object().map(value => JSON.stringify({version: 1, id: 'a', ...value})),
				),
				text => {
					try {
						return parseRecord('a', text).id === 'a';
					} catch (error) {
						return error instanceof AdaptorError && error.code === 'data-loss';
					}
				},
			),
		),
	);
});

test('an unreadable record fails its own read; reading all records skips and reports it', async t => {
	const podsDir = await directoryOf(t);
	const log = recordingLog();
	const records = new FileRecords(podsDir, log);
	await mkdir(join(podsDir, 'a', 'sandbox.json'), {recursive: true});
	await records.write({...created, id: 'c'});
	t.like(await t.throwsAsync<AdaptorError>(records.read('a'), {message: /EISDIR.*PODS_DIR/}), {
		code: 'unavailable',
		where: {sandboxId: 'a'},
	});
	t.deepEqual(await records.readAll(), [{...created, id: 'c'}]);
	t.deepEqual(
		log.lines.map(({level, message}) => [level, message]),
		[['error', 'a sandbox record cannot be read; skipping it']],
	);
});

test('a record that cannot be written is an error that names the setting', async t => {
	const podsDir = join(await directoryOf(t), 'file');
	await writeFile(podsDir, '');
	await t.throwsAsync(new FileRecords(podsDir, recordingLog()).write(created), {
		instanceOf: AdaptorError,
		message: /to PODS_DIR: not a directory.*PODS_DIR/,
	});
});

test('a record of a later version stays in place, and is reported with a remedy', async t => {
	const podsDir = await directoryOf(t);
	const log = recordingLog();
	const records = new FileRecords(podsDir, log);
	await mkdir(join(podsDir, 'a'));
	await writeFile(join(podsDir, 'a', 'sandbox.json'), JSON.stringify({version: 2, ...created}));
	await records.write({...created, id: 'c'});
	t.deepEqual(await records.readAll(), [{...created, id: 'c'}]);
	t.deepEqual(
		log.lines.map(({level, message}) => [level, message]),
		[['error', 'a sandbox record cannot be read; skipping it']],
	);
	const error = await t.throwsAsync(records.read('a'), {instanceOf: AdaptorError});
	t.like(error, {code: 'failed-precondition', where: {sandboxId: 'a'}});
	t.regex(error.remedy ?? '', /later version until/);
	t.deepEqual(await readdir(join(podsDir, 'a')), ['sandbox.json']);
});
