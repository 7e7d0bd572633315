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

interface World extends TestCluster {
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
async function world(
	t: ExecutionContext,
	own: readonly string[],
	ofAccount: readonly string[] = [],
	options: Partial<PullSecretsOptions> = {},
): Promise<World> {
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

test("the pod's secrets come first and in their order, then the service account's, then the administrator's file", async t => {
	const {pullSecrets, secret, authFile, events, log, signal} = await world(t, ['one', 'two'], ['two', 'three']);
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

test('a pod without any has no credentials, and nothing is said', async t => {
	const {pullSecrets, events, log, signal} = await world(t, []);
	t.is(await pullSecrets.pullCredentials(pod, signal), undefined);
	t.deepEqual([events, log.lines], [[], []]);
});

test("a pod that names no service account has the default one's, and the older kind of secret counts", async t => {
	const {api, pullSecrets, signal} = await world(t, []);
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

test('secrets that are missing, malformed, of another type or forbidden are told in one event by name, and the others count', async t => {
	const {api, pullSecrets, secret, events, log, said, signal} = await world(t, [
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
		/secret opaque: no registry credentials in it/,
		/secret forbidden: The Kubernetes API refused/,
	]) {
		t.regex(events[0]?.message ?? '', words);
	}

	t.is(log.lines.filter(({level}) => level === 'warn').length, 4);
	t.false(said().includes('hush'));
});

test("an API server that does not answer is waited for a while, and the pod goes on with the administrator's credentials", async t => {
	const {api, pullSecrets, secret, authFile, events, said, signal} = await world(t, ['one'], [], {timeoutMs: 100});
	secret('one', {a: 'one'});
	await writeFile(authFile, JSON.stringify({auths: {b: {auth: base64('file:hush-hush')}}}));
	using _ = api.fault(() => 'silence');
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {b: 'file'});
	t.regex(events[0]?.message ?? '', /pod web: Timed out after 100 ms waiting for the Kubernetes API/);
	t.false(said().includes('hush'));
});

test('what was read before the API server fell silent counts', async t => {
	const {api, pullSecrets, secret, events, signal} = await world(t, ['one', 'two'], [], {timeoutMs: 8000});
	secret('one', {a: 'one'});
	secret('two', {b: 'two'});
	// Once without a fault: what is slow at first (connections, code that was never run) is not to take the time.
	await pullSecrets.pullCredentials(pod, signal);
	using _ = api.fault(({name}) => (name === 'two' ? 'silence' : undefined));
	t.deepEqual(users(await pullSecrets.pullCredentials(pod, signal)), {a: 'one'});
	t.regex(events[0]?.message ?? '', /secret two: Timed out/);
});

test('a caller that gives up is left with its own reason, and nothing is said', async t => {
	const {api, pullSecrets, events, log, signal} = await world(t, ['one']);
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
	const {api, pullSecrets, secret, events, podUid, signal} = await world(t, ['one']);
	secret('one', {a: 'one'});
	t.is(await pullSecrets.pullCredentials({...pod, uid: 'earlier'}, signal), undefined);
	t.regex(events[0]?.message ?? '', /pod web: The pod of this name is another one/);
	t.false(api.calls.some(({plural}) => plural === 'secrets'));
	t.deepEqual(users(await pullSecrets.pullCredentials({...pod, uid: podUid}, signal)), {a: 'one'});
});

test('a static pod is the one of its mirror', async t => {
	const {api, pullSecrets, secret, events, signal} = await world(t, ['one']);
	secret('one', {a: 'one'});
	api.put('pods', {metadata: {...pod, annotations: {'kubernetes.io/config.mirror': 'of-the-kubelet'}}});
	t.deepEqual(users(await pullSecrets.pullCredentials({...pod, uid: 'of-the-kubelet'}, signal)), {a: 'one'});
	t.deepEqual(events, []);
});

test('a secret of any size is passed on whole', async t => {
	const {pullSecrets, secret, signal} = await world(t, ['large']);
	const registries = Array.from(
		{length: 5000},
		(_, index) => `registry-${index}.example.com/a/long/path/to/make/it/larger`,
	);
	secret('large', Object.fromEntries(registries.map(registry => [registry, 'user'])));
	t.is(Object.keys(users(await pullSecrets.pullCredentials(pod, signal))).length, registries.length);
});

test('of very many secrets the first fifty are read, and that the others are not is told once', async t => {
	const names = Array.from({length: 60}, (_, index) => `secret-${index}`);
	const {api, pullSecrets, secret, events, log, signal} = await world(t, names);
	for (const name of names) {
		secret(name, {[name]: 'user'});
	}

	t.deepEqual(
		Object.keys(users(await pullSecrets.pullCredentials(pod, signal))).toSorted(),
		names.slice(0, 50).toSorted(),
	);
	t.is(api.calls.filter(({plural}) => plural === 'secrets').length, 50);
	t.regex(events[0]?.message ?? '', /10 secrets beyond the first 50: not read, there are too many/);
	t.is(log.lines.length, 1);
});

test("an administrator's file that is damaged is told in the log, not to the pod, and is read again at the next start", async t => {
	const {pullSecrets, authFile, events, log, said, signal} = await world(t, []);
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

test('credentials print as nothing', async t => {
	const {pullSecrets, secret, signal} = await world(t, ['one']);
	secret('one', {a: 'one'});
	const credentials = await pullSecrets.pullCredentials(pod, signal);
	t.is(
		`${String(credentials)} ${JSON.stringify(credentials)} ${inspect(credentials)}`,
		'[redacted] "[redacted]" [redacted]',
	);
});
