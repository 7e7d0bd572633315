// How the end of a VM is noticed that nobody looks at: with events of libvirt's test driver, and without them.
import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import type {SessionState} from '../../src/libvirt/session-options.ts';
import {EndWatch} from '../../src/podvm/end-watch.ts';
import {parseUuid} from '../../src/podvm/vm-slots.ts';
import {specOf} from '../contract/pod-vms.ts';
import {recordingLog} from '../support/recording-log.ts';
import {intercept, never, podVmsOn, startLibvirtHost, type InterceptedCalls, type LibvirtHost} from './libvirt-host.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

interface Vm {
	readonly domain: {readonly name: string; readonly uuid: Buffer; readonly id: number};
	readonly kill: () => Promise<void>;
}

async function running(): Promise<Vm> {
	const {name, uuid} = await podVmsOn(host.calls, await host.pool()).start(specOf(), never);
	const domain = {name, uuid: parseUuid(uuid), id: -1};
	return {domain, kill: async () => host.calls.call(procedures.domainDestroyFlags, {dom: domain, flags: 0}, never)};
}

interface Deaf {
	readonly calls: InterceptedCalls;
	/** What a session tells when it has connected again. */
	readonly reconnect: () => void;
	/** How many listen to it. */
	readonly listeners: () => number;
}

/** A session whose events are all lost. */
function deaf(): Deaf {
	const listeners = new Set<(state: SessionState) => void>();
	let subscriptions = 0;
	const subscription = (onDispose: () => void): Disposable => {
		subscriptions++;
		return {
			[Symbol.dispose]() {
				subscriptions--;
				onDispose();
			},
		};
	};
	const calls = intercept({
		...host.calls,
		onLifecycle: () => subscription(() => undefined),
		onState: listener => {
			listeners.add(listener);
			return subscription(() => listeners.delete(listener));
		},
	});
	const server = {driver: 'TEST', libvirtVersion: '9.0.0', hostname: 'h', transport: 'unix'};
	return {
		calls,
		reconnect() {
			for (const listener of listeners) {
				listener({name: 'connected', server});
			}
		},
		listeners: () => subscriptions,
	};
}

/** Resolves when the watch has looked for the first time, so that it waits now. */
async function looked(calls: InterceptedCalls): Promise<void> {
	const {promise, resolve} = Promise.withResolvers<undefined>();
	calls.after = async () => resolve(undefined);
	await promise;
	await turn();
}

function watchOn(
	t: ExecutionContext,
	calls: InterceptedCalls,
	scanIntervalMs = 60_000,
): {watch: EndWatch; log: ReturnType<typeof recordingLog>; signal: AbortSignal} {
	const [log, abort] = [recordingLog(), new AbortController()];
	t.teardown(() => abort.abort(new Error('the test is over')));
	return {watch: new EndWatch({session: calls, log, scanIntervalMs}), log, signal: abort.signal};
}

test('after an event was lost with the connection, the states of the VMs are read on reconnection', async t => {
	const {calls, reconnect, listeners} = deaf();
	const {watch, signal} = watchOn(t, calls);
	const vm = await running();
	const ended = watch.ended(vm.domain, signal);
	await looked(calls);
	await vm.kill();
	reconnect();
	t.regex((await ended).message, /somebody stopped it/);
	await turn();
	t.is(listeners(), 0, 'nothing listens any more');
});

test('after an event was lost for another reason, the states of the VMs are read periodically', async t => {
	const {calls} = deaf();
	const {watch, signal} = watchOn(t, calls, 5);
	const vm = await running();
	const ended = watch.ended(vm.domain, signal);
	await looked(calls);
	await vm.kill();
	t.regex((await ended).message, /somebody stopped it/);
});

test('reading the states of running VMs takes one call for all of them', async t => {
	const {calls, reconnect} = deaf();
	const {watch, signal} = watchOn(t, calls);
	const vms = await Promise.all([running(), running(), running()]);
	for (const {domain} of vms) {
		watch.ended(domain, signal).catch(() => undefined);
	}

	await looked(calls);
	calls.made.length = 0;
	reconnect();
	await looked(calls);
	t.deepEqual(calls.made, ['connectListAllDomains']);
});

test('if another VM has the UUID of a watched VM, the watched VM has ended', async t => {
	const {calls} = deaf();
	const {watch, signal} = watchOn(t, calls);
	const {domain} = await running();
	t.regex((await watch.ended({...domain, name: 'podvm-gone-01234567'}, signal)).message, /no longer exists/);
});

test('if libvirt is unreachable, the call is repeated, and no VM is given up', async t => {
	const {calls, reconnect} = deaf();
	const {watch, signal, log} = watchOn(t, calls);
	const vm = await running();
	calls.before = async () => {
		throw new AdaptorError({code: 'unavailable', what: 'The host is away'});
	};
	const ended = watch.ended(vm.domain, signal);
	while (log.lines.length === 0) {
		await turn();
	}

	calls.before = undefined;
	await vm.kill();
	reconnect();
	t.regex((await ended).message, /somebody stopped it/);
	t.deepEqual(
		log.lines.map(({level}) => level),
		['debug'],
	);
});

test('a watch without waiters makes no calls and has no listeners, and can be used again', async t => {
	const {calls, listeners} = deaf();
	const {watch} = watchOn(t, calls, 1);
	const {domain, kill} = await running();
	for (let time = 1; time <= 2; time++) {
		const abort = new AbortController();
		const ended = watch.ended(domain, abort.signal);
		await looked(calls);
		abort.abort(new Error('enough'));
		await t.throwsAsync(ended, {message: 'enough'});
		await turn();
		t.is(listeners(), 0);
	}

	await kill();
	t.is((await watch.ended(domain, never)).code, 'aborted');
});
