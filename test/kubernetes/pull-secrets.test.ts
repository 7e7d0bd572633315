import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {inspect} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {PullSecrets, type PullSecretsOptions} from '../../src/kubernetes/pull-secrets.ts';
import type {Secret} from '../../src/core/log.ts';
import type {PodEvent} from '../../src/sandbox/ports.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';
import {testCluster, type TestCluster} from './cluster.ts';

const base64 = (text: string): string => Buffer.from(text).toString('base64');
const pod = {name: 'web', namespace: 'default'};
const references = (names: readonly string[]): ReadonlyArray<{name: string}> => names.map(name => ({name}));

interface Fixture extends TestCluster {
	readonly pullSecrets: PullSecrets;
	readonly events: PodEvent[];
	readonly log: ReturnType<typeof recordingLog>;
	readonly authFile: string;
	readonly podUid: string;
	readonly secret: (name: string, auths: Readonly<Record<string, string>>) => void;
	/** Everything that was said about it, anywhere. */
	readonly said: () => string;
}

/** A pod with these pull secrets of its own, and a service account with those. */
async function fixture(
	t: ExecutionContext,
	own: readonly string[],
	ofAccount: readonly string[] = [],
	options: Partial<PullSecretsOptions> = {},
): Promise<Fixture> {
	const cluster = await testCluster(t);
	const {api, client} = cluster;
	api.put('serviceaccounts', {
		metadata: {name: 'robot', namespace: 'default'},
		imagePullSecrets: references(ofAccount),
	});
	const {metadata} = api.put('pods', {
		metadata: pod,
		spec: {serviceAccountName: 'robot', imagePullSecrets: references(own)},
	});
	const log = recordingLog();
	const events: PodEvent[] = [];
	const authFile = join(await directoryOf(t), 'auth.json');
	return {
		...cluster,
		events,
		log,
		authFile,
		podUid: metadata.uid,
		// A busy machine is not what is tested.
		pullSecrets: new PullSecrets({
			client,
			tell: (_, event) => events.push(event),
			authFile,
			log,
			timeoutMs: 100_000,
			...options,
		}),
		secret(name, auths) {
			const content = {
				auths: Object.fromEntries(
					Object.entries(auths).map(([registry, user]) => [registry, {auth: base64(`${user}:hush-hush`)}]),
				),
			};
			api.put('secrets', {
				metadata: {name, namespace: 'default'},
				type: 'kubernetes.io/dockerconfigjson',
				data: {'.dockerconfigjson': base64(JSON.stringify(content))},
			});
		},
		said: () => inspect([log.lines, events], {depth: 20}) + JSON.stringify([log.lines, events]),
	};
}

/** The user at each registry. */
function users(credentials: Secret<string> | undefined): Record<string, string> {
	const {auths} = JSON.parse(credentials?.reveal() ?? '{"auths": {}}') as {auths: Record<string, {auth: string}>};
	return Object.fromEntries(
		Object.entries(auths).map(([registry, {auth}]) => [
			registry,
			Buffer.from(auth, 'base64').toString().split(':')[0] ?? '',
		]),
	);
}

test('secrets of the pod precede those of the service account and the file of the administrator', async t => {
	const {pullSecrets, secret, authFile, events, log, signal} = await fixture(t, ['one', 'two'], ['two', 'three']);
	secret('one', {a: 'one'});
	secret('two', {a: 'two', b: 'two'});
	secret('three', {a: 'three', b: 'three', c: 'three'});
	await writeFile(
		authFile,
		JSON.stringify({
			auths: Object.fromEntries(
				['a', 'b', 'c', 'd'].map(registry => [registry, {auth: base64('file:hush-hush')}]),
			),
		}),
	);
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {a: 'one', b: 'two', c: 'three', d: 'file'});
	t.deepEqual([events, log.lines], [[], []]);
});

test('a pod without secrets has no credentials, and nothing is logged', async t => {
	const {pullSecrets, events, log, signal} = await fixture(t, []);
	t.is(await pullSecrets.pullCredentials(pod, signal), undefined);
	t.deepEqual([events, log.lines], [[], []]);
});

test("a pod that names no service account has the default one's, and the older kind of secret counts", async t => {
	const {api, pullSecrets, signal} = await fixture(t, []);
	api.put('pods', {metadata: {name: 'plain', namespace: 'default'}, spec: {}});
	api.put('serviceaccounts', {
		metadata: {name: 'default', namespace: 'default'},
		imagePullSecrets: references(['old', '']),
	});
	api.put('secrets', {
		metadata: {name: 'old', namespace: 'default'},
		type: 'kubernetes.io/dockercfg',
		data: {'.dockercfg': base64(JSON.stringify({'quay.io': {username: 'u', password: 'p'}}))},
	});
	t.deepEqual(users(await pullSecrets.pullCredentials({name: 'plain', namespace: 'default'}, signal)), {
		'quay.io': 'u',
	});
});

test('one event names missing, malformed and forbidden secrets, and the other secrets are used', async t => {
	const {api, pullSecrets, secret, events, log, said, signal} = await fixture(t, [
		'missing',
		'malformed',
		'opaque',
		'forbidden',
		'good',
	]);
	api.put('secrets', {
		metadata: {name: 'malformed', namespace: 'default'},
		data: {'.dockerconfigjson': base64('{"auths": hush-hush')},
	});
	api.put('secrets', {metadata: {name: 'opaque', namespace: 'default'}, data: {password: base64('hush-hush')}});
	secret('good', {a: 'good'});
	using _ = api.fault(({name}) => (name === 'forbidden' ? 'forbidden' : undefined));
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {a: 'good'});
	t.is(events.length, 1);
	t.like(events[0], {type: 'Warning', reason: 'FailedToRetrieveImagePullSecret'});
	for (const words of [
		/secret missing: not found/,
		/secret malformed: not JSON/,
		/secret opaque: contains no registry credentials/,
		/secret forbidden: The Kubernetes API refused/,
	]) {
		t.regex(events[0]?.message ?? '', words);
	}

	t.is(log.lines.filter(({level}) => level === 'warn').length, 4);
	t.false(said().includes('hush'));
});

test('if the API server does not answer in time, the pod continues with the file of the administrator', async t => {
	const {api, pullSecrets, secret, authFile, events, said, signal} = await fixture(t, ['one'], [], {timeoutMs: 100});
	secret('one', {a: 'one'});
	await writeFile(authFile, JSON.stringify({auths: {b: {auth: base64('file:hush-hush')}}}));
	using _ = api.fault(() => 'silence');
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {b: 'file'});
	t.regex(events[0]?.message ?? '', /pod web: Timed out after 100 ms waiting for the Kubernetes API/);
	t.false(said().includes('hush'));
});

test('what was read before the API server fell silent counts', async t => {
	const {api, pullSecrets, secret, events, signal} = await fixture(t, ['one', 'two'], [], {timeoutMs: 8000});
	secret('one', {a: 'one'});
	secret('two', {b: 'two'});
	// Once without a fault: what is slow at first (connections, code that was never run) is not to take the time.
	await pullSecrets.pullCredentials(pod, signal);
	using _ = api.fault(({name}) => (name === 'two' ? 'silence' : undefined));
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {a: 'one'});
	t.regex(events[0]?.message ?? '', /secret two: Timed out/);
});

test('a caller that gives up gets the reason of its signal, and nothing is logged', async t => {
	const {api, pullSecrets, events, log, signal} = await fixture(t, ['one']);
	using _ = api.fault(() => 'silence');
	const caller = new AbortController();
	const answer = t.throwsAsync(pullSecrets.pullCredentials(pod, AbortSignal.any([caller.signal, signal])), {
		message: 'enough',
	});
	await api.until(() => api.calls.length > 0);
	caller.abort(new Error('enough'));
	await answer;
	t.deepEqual([events, log.lines], [[], []]);
});

test('another pod of the same name is not asked for its secrets', async t => {
	const {api, pullSecrets, secret, events, podUid, signal} = await fixture(t, ['one']);
	secret('one', {a: 'one'});
	t.is(await pullSecrets.pullCredentials({...pod, uid: 'earlier'}, signal), undefined);
	t.regex(events[0]?.message ?? '', /pod web: The pod with this name has another UID/);
	t.false(api.calls.some(({plural}) => plural === 'secrets'));
	t.deepEqual(users(await pullSecrets.pullCredentials({...pod, uid: podUid}, signal)), {a: 'one'});
});

test('a static pod is identified by its mirror pod', async t => {
	const {api, pullSecrets, secret, events, signal} = await fixture(t, ['one']);
	secret('one', {a: 'one'});
	api.put('pods', {metadata: {...pod, annotations: {'kubernetes.io/config.mirror': 'of-the-kubelet'}}});
	t.deepEqual(users(await pullSecrets.pullCredentials({...pod, uid: 'of-the-kubelet'}, signal)), {a: 'one'});
	t.deepEqual(events, []);
});

/** A file of credentials of about this size, for one registry. */
const padded = (registry: string, bytes: number): string =>
	JSON.stringify({auths: {[registry]: {auth: base64(`user:${'p'.repeat((bytes * 3) / 4)}`)}}});
const dataOf = (text: string): object => ({'.dockerconfigjson': base64(text)});
const putSecret = ({api}: Pick<Fixture, 'api'>, name: string, text: string): void => {
	api.put('secrets', {
		metadata: {name, namespace: 'default'},
		type: 'kubernetes.io/dockerconfigjson',
		data: dataOf(text),
	});
};

/** Counts what is asked for at a time. */
function counting(client: PullSecretsOptions['client']): PullSecretsOptions['client'] & {readonly peak: () => number} {
	let [running, peak] = [0, 0];
	return {
		peak: () => peak,
		async get(...call) {
			running += 1;
			peak = Math.max(peak, running);
			try {
				return await client.get(...call);
			} finally {
				running -= 1;
			}
		},
	};
}

test('with many large secrets, four are read in parallel and no VM gets more than its limit', async t => {
	const names = Array.from({length: 50}, (_, index) => `secret-${index}`);
	const {api, client, secret, events, log, said, signal} = await fixture(t, [
		...names.slice(1),
		'last',
		names[0] ?? '',
	]);
	for (const name of names) {
		putSecret({api}, name, padded(name, 750_000));
	}

	const counted = counting(client);
	const pullSecrets = new PullSecrets({
		client: counted,
		tell: (_, event) => events.push(event),
		authFile: '/nowhere',
		log,
		timeoutMs: 100_000,
	});
	secret('last', {a: 'a'});
	const found = await Promise.all(Array.from({length: 3}, async () => pullSecrets.pullCredentials(pod, signal)));
	t.deepEqual(
		found.map(each => each?.reveal().length ?? 0).filter(length => length > 262_144),
		[],
	);
	t.is(counted.peak(), 4);
	t.is(api.calls.filter(({plural}) => plural === 'secrets').length, 3 * 32);
	t.is(events.length, 3);
	t.regex(events[0]?.message ?? '', /secret secret-1: its credentials are larger than 262144 bytes/);
	t.is(log.lines.length, 3 * 33);
	t.false(said().includes(base64('user:ppp').slice(0, 10)));
});

test('secrets over the total limit are left out and reported with sizes; smaller ones still fit', async t => {
	const {api, pullSecrets, secret, authFile, events, log, said, signal} = await fixture(t, [
		'one',
		'two',
		'three',
		'four',
	]);
	for (const name of ['one', 'two', 'three']) {
		putSecret({api}, name, padded(name, 100_000));
	}

	secret('four', {four: 'user'});
	await writeFile(authFile, padded('file', 100_000));
	const credentials = await pullSecrets.pullCredentials(pod, signal);
	t.deepEqual(
		Object.keys(users(credentials)),
		['one', 'two', 'four', 'file'],
		"the administrator's are not cut for what a pod brings",
	);
	t.is(events.length, 1);
	t.regex(
		events[0]?.message ?? '',
		/secret three: its 100\d\d\d bytes of credentials exceed the limit of 262144 together with 200\d\d\d bytes of other secrets/,
	);
	t.is(log.lines.length, 1);
	t.false(said().includes(base64('user:ppp').slice(0, 10)));
});

test('an object larger than any secret is not read completely, and one with too many parts is not parsed', async t => {
	const {api, pullSecrets, secret, events, signal} = await fixture(t, ['large', 'many', 'members', 'good']);
	api.put('secrets', {
		metadata: {name: 'large', namespace: 'default'},
		data: {other: 'x'.repeat(1_100_000), ...dataOf('{}')},
	});
	api.put('secrets', {
		metadata: {name: 'many', namespace: 'default'},
		data: {...Object.fromEntries(Array.from({length: 10_001}, (_, index) => [`k${index}`, ''])), ...dataOf('{}')},
	});
	putSecret({api}, 'members', JSON.stringify({auths: {}, other: Array.from({length: 5001}, () => 1)}));
	secret('good', {a: 'good'});
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {a: 'good'});
	for (const words of [
		/secret large: The answer of the Kubernetes API has more than 1048576 bytes/,
		/secret many: The answer of the Kubernetes API has more than 10000 values/,
		/secret members: its credentials have more than 5000 values/,
	]) {
		t.regex(events[0]?.message ?? '', words);
	}
});

test('each secret is processed in a separate turn of the event loop', async t => {
	const names = Array.from({length: 20}, (_, index) => `secret-${index}`);
	const metadata = {
		...pod,
		uid: 'u',
		resourceVersion: '1',
		labels: {},
		annotations: {},
		finalizers: [],
		ownerReferences: [],
	};
	// Everything is there at once: nothing but our own pauses lets others have a turn.
	const client: PullSecretsOptions['client'] = {
		get: async ({kind, read}) => ({
			...read(
				kind === 'Secret' ? {data: dataOf(padded('a', 1000))} : {spec: {imagePullSecrets: references(names)}},
			),
			metadata,
		}),
	};
	const pullSecrets = new PullSecrets({
		client,
		tell: () => undefined,
		authFile: '/nowhere',
		log: recordingLog(),
		timeoutMs: 100_000,
	});
	let turns = 0;
	let isOver = false;
	const turn = (): void => {
		turns += 1;
		if (!isOver) {
			setImmediate(turn);
		}
	};
	setImmediate(turn);
	await pullSecrets.pullCredentials(pod, new AbortController().signal);
	isOver = true;
	t.true(turns >= names.length, `${turns} turns`);
});

test('invalid secret names are not requested, and are reported without showing them', async t => {
	const {api, pullSecrets, secret, events, said, signal} = await fixture(t, [
		'Upper',
		'../pods',
		'a'.repeat(254),
		'-'.repeat(200_000),
		'good.name',
	]);
	secret('good.name', {a: 'good'});
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {a: 'good'});
	t.deepEqual(
		api.calls.filter(({plural}) => plural === 'secrets').map(({name}) => name),
		['good.name'],
	);
	t.regex(events[0]?.message ?? '', /4 secrets: these are not valid names of secrets/);
	t.false(said().includes('Upper') || said().includes('----'));
});

test('unusable registry names in a secret are omitted, and their number is reported', async t => {
	const {pullSecrets, secret, events, log, said, signal} = await fixture(t, ['one']);
	secret('one', {
		'good.example': 'user',
		'quo"te': 'u',
		'back\\slash': 'u',
		'line\nfeed': 'u',
		'nul\0': 'u',
		'spa ce': 'u',
		süß: 'u',
		[`${'/'.repeat(40_000)}x`]: 'u',
	});
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {'good.example': 'user'});
	t.regex(
		events[0]?.message ?? '',
		/secret one: 7 of its registries have invalid names or names of more than 512 characters/,
	);
	t.is(log.lines.length, 1);
	t.false(said().includes('quo') || said().includes('////'));
});

test('only the first 32 secrets are read, and the omission of the others is reported once', async t => {
	const names = Array.from({length: 60}, (_, index) => `secret-${index}`);
	const {api, pullSecrets, secret, events, log, signal} = await fixture(t, names);
	for (const name of names) {
		secret(name, {[name]: 'user'});
	}

	t.deepEqual(
		Object.keys(users(await pullSecrets.pullCredentials(pod, signal))).toSorted(),
		names.slice(0, 32).toSorted(),
	);
	t.is(api.calls.filter(({plural}) => plural === 'secrets').length, 32);
	t.regex(events[0]?.message ?? '', /28 secrets beyond the first 32: not read because there are too many/);
	t.is(log.lines.length, 1);
});

test('a damaged file of the administrator is logged, not reported to the pod, and read again next time', async t => {
	const {pullSecrets, authFile, events, log, said, signal} = await fixture(t, []);
	await writeFile(authFile, '{"auths": hush-hush');
	t.is(await pullSecrets.pullCredentials(pod, signal), undefined);
	t.deepEqual(
		log.lines.map(({level, fields}) => [level, fields.path]),
		[['warn', authFile]],
	);
	t.deepEqual(events, []);
	t.false(said().includes('hush'));
	await writeFile(authFile, JSON.stringify({auths: {a: {auth: base64('file:hush-hush')}}}));
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {a: 'file'});
});

test('credentials are never printed', async t => {
	const {pullSecrets, secret, signal} = await fixture(t, ['one']);
	secret('one', {a: 'one'});
	const credentials = await pullSecrets.pullCredentials(pod, signal);
	t.is(
		`${String(credentials)} ${JSON.stringify(credentials)} ${inspect(credentials)}`,
		'[redacted] "[redacted]" [redacted]',
	);
});
