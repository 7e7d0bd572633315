// Where a VM is found and how its end is noticed: events and states of libvirt's test driver; leases, which it lacks,
// are scripted.
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {lifecycleEvent} from '../../src/libvirt/wire/events.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import type {LibvirtCalls} from '../../src/podvm/libvirt-calls.ts';
import {endOfEvent, endOfState} from '../../src/podvm/vm-end.ts';
import {PodVmEndedError} from '../../src/sandbox/vm-ended.ts';
import type {PodVm} from '../../src/sandbox/ports.ts';
import {specOf} from '../contract/pod-vms.ts';
import {recordingLog} from '../support/recording-log.ts';
import {intercept, never, podVmsOn, startLibvirtHost, type InterceptedCalls, type LibvirtHost} from './libvirt-host.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

interface Running {
	readonly vm: PodVm;
	readonly calls: InterceptedCalls;
	readonly addresses: AsyncGenerator<string, never>;
	readonly log: ReturnType<typeof recordingLog>;
	readonly kill: () => Promise<void>;
}

async function running(
	t: ExecutionContext,
	through: (calls: LibvirtCalls) => LibvirtCalls = calls => calls,
): Promise<Running> {
	const [calls, log] = [intercept(through(host.calls)), recordingLog()];
	const vms = podVmsOn(calls, await host.pool(), {log});
	const vm = await vms.start(specOf(), never);
	const {dom} = await host.calls.call(procedures.domainLookupByName, {name: vm.name}, never);
	const addresses = vms.addresses(vm, never);
	t.teardown(async () => addresses.return(undefined as never));
	return {
		vm,
		calls,
		log,
		addresses,
		kill: async () => host.calls.call(procedures.domainDestroyFlags, {dom, flags: 0}, never),
	};
}

function lease(mac: string, ipaddr: string, expirytime: number, type = 0): object {
	return {
		iface: 'virbr0',
		expirytime: BigInt(expirytime),
		type,
		mac,
		iaid: null,
		ipaddr,
		prefix: 24,
		hostname: null,
		clientid: null,
	};
}

/** A libvirt whose network has these leases. */
function withLeases(calls: InterceptedCalls, leases: () => readonly object[]): void {
	calls.answer = name => (name === 'networkGetDhcpLeases' ? {leases: leases(), ret: 0} : undefined);
}

test('leases of the MAC are returned newest first, each once, without IPv6 or other MACs', async t => {
	const {
		calls,
		vm: {mac},
		addresses,
	} = await running(t);
	const leases = [
		lease(mac, '192.168.122.10', 100),
		lease('52:54:00:00:00:01', '192.168.122.66', 900),
		lease(mac.toUpperCase(), '192.168.122.11', 200),
		lease(mac, 'fd00::1', 300, 1),
	];
	withLeases(calls, () => leases);
	t.is((await addresses.next()).value, '192.168.122.11');
	t.is((await addresses.next()).value, '192.168.122.10');
	leases.push(lease(mac, '192.168.122.12', 300));
	t.is((await addresses.next()).value, '192.168.122.12');
});

test('without leases the neighbour table is read; its failure has no effect', async t => {
	const {
		calls,
		vm: {mac},
		addresses,
		log,
	} = await running(t);
	let rounds = 0;
	calls.answer = (name, args) => {
		if (name === 'networkGetDhcpLeases') {
			return {leases: [], ret: 0};
		}

		if (name === 'domainInterfaceAddresses') {
			t.is((args as {source: number}).source, 2);
			if (rounds++ === 0) {
				throw new AdaptorError({code: 'internal', what: 'cannot read the ARP table'});
			}

			return {
				ifaces: [
					{
						name: 'vnet0',
						hwaddr: mac,
						addrs: [
							{type: 1, addr: 'fe80::1', prefix: 64},
							{type: 0, addr: '10.0.0.7', prefix: 0},
						],
					},
				],
			};
		}

		return undefined;
	};
	t.is((await addresses.next()).value, '10.0.0.7');
	t.deepEqual(
		log.lines.filter(({level, fields}) => level === 'warn' && fields.domainType === undefined),
		[],
	);
});

test('if libvirt is unreachable for a while, calls are retried, and one warning is logged', async t => {
	const {
		calls,
		vm: {mac},
		addresses,
		log,
	} = await running(t);
	withLeases(calls, () => [lease(mac, '192.168.122.10', 1)]);
	let failures = 0;
	calls.before = async () =>
		failures++ < 6
			? Promise.reject(new AdaptorError({code: 'unavailable', what: 'The connection was lost'}))
			: undefined;
	t.is((await addresses.next()).value, '192.168.122.10');
	const [first, ...later] = log.lines
		.filter(({message}) => /asking libvirt again/.test(message))
		.map(({level}) => level);
	t.is(first, 'warn');
	t.true(later.length > 0 && later.every(level => level === 'debug'), later.join(' '));
});

test('an event ends the search at once, also between two questions and while nobody waits', async t => {
	const {addresses, kill} = await running(t);
	await addresses.next();
	await kill();
	// The event is on the same connection as this answer, and before it.
	await host.calls.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, never);
	const error = await t.throwsAsync(addresses.next(), {instanceOf: PodVmEndedError});
	t.regex(error.message, /somebody stopped it/);
	t.like(error.where, {event: 5, detail: 1});
});

test('a lost event does not matter: the state is read as well', async t => {
	const {addresses, kill} = await running(t, calls => ({
		...calls,
		onLifecycle: () => ({[Symbol.dispose]: () => undefined}),
	}));
	await addresses.next();
	await kill();
	const error = await t.throwsAsync(addresses.next(), {instanceOf: PodVmEndedError});
	t.is(error.where['state'], 5);
});

test('a VM whose domain is gone has ended', async t => {
	const {addresses, calls, kill, vm} = await running(t, calls => ({
		...calls,
		onLifecycle: () => ({[Symbol.dispose]: () => undefined}),
	}));
	await kill();
	const {dom} = await host.calls.call(procedures.domainLookupByName, {name: vm.name}, never);
	await host.calls.call(procedures.domainUndefineFlags, {dom, flags: 0}, never);
	withLeases(calls, () => []);
	await t.throwsAsync(addresses.next(), {instanceOf: PodVmEndedError, message: /no longer exists/});
});

test("another VM's end, and that of a VM that had our UUID before, do not end the search", async t => {
	const {addresses, kill, vm} = await running(t, calls => ({
		...calls,
		onLifecycle: listener =>
			calls.onLifecycle(event => {
				listener({...event, domain: {...event.domain, name: 'podvm-older-00000000'}});
				listener({...event, domain: {...event.domain, uuid: Buffer.alloc(16)}});
			}),
	}));
	const other = await running(t);
	await addresses.next();
	await other.kill();
	const next = addresses.next();
	await kill();
	// Only the state tells; an event would have come with other words.
	const error = await t.throwsAsync(next, {instanceOf: PodVmEndedError});
	t.is(error.where['state'], 5);
	t.is(error.where['instanceName'], vm.name);
});

test('no listener remains after the search, however it ended', async t => {
	let listening = 0;
	const counted = (calls: LibvirtCalls): LibvirtCalls => ({
		...calls,
		onLifecycle: listener => {
			const subscription = calls.onLifecycle(listener);
			listening++;
			return {
				[Symbol.dispose]: () => {
					listening--;
					subscription[Symbol.dispose]();
				},
			};
		},
	});
	const returned = await running(t, counted);
	await returned.addresses.next();
	t.is(listening, 1);
	await returned.addresses.return(undefined as never);
	t.is(listening, 0);
	const died = await running(t, counted);
	await died.addresses.next();
	await died.kill();
	await t.throwsAsync(died.addresses.next());
	t.is(listening, 0);
	const pool = await host.pool();
	const vms = podVmsOn(counted(host.calls), pool);
	const vm = await vms.start(specOf(), never);
	for await (const _address of vms.addresses(vm, never)) {
		t.is(listening, 1);
		break;
	}

	t.is(listening, 0);
});

test('every kind of end has a text and a remedy; other events are not an end', t => {
	const domain = {name: 'podvm-web-01234567', uuid: Buffer.alloc(16), id: 1};
	const words = (event: number, detail: number): string | undefined =>
		endOfEvent(lifecycleEvent(domain, event, detail))?.what;
	t.regex(words(8, 0) ?? '', /kernel panicked/);
	t.regex(words(5, 2) ?? '', /kernel panicked/);
	t.regex(words(5, 5) ?? '', /QEMU failed or was killed/);
	t.regex(words(5, 0) ?? '', /shut itself down/);
	t.regex(words(5, 1) ?? '', /somebody stopped it/);
	t.regex(words(3, 2) ?? '', /disk cannot be read or written/);
	t.regex(words(5, 99) ?? '', /is no longer running/);
	for (const [event, detail] of [
		[0, 0],
		[1, 0],
		[2, 0],
		[3, 0],
		[4, 0],
		[6, 1],
		[99, 0],
	] as const) {
		t.is(words(event, detail), undefined);
	}

	t.truthy(endOfEvent(lifecycleEvent(domain, 8, 0))?.remedy);
	t.regex(endOfState('a', {state: 5, reason: 3})?.what ?? '', /kernel panicked/);
	t.regex(endOfState('a', {state: 5, reason: 6})?.what ?? '', /QEMU failed/);
	t.regex(endOfState('a', {state: 6, reason: 1})?.what ?? '', /kernel panicked/);
	t.regex(endOfState('a', {state: 3, reason: 5})?.what ?? '', /disk cannot/);
	t.is(endOfState('a', {state: 1, reason: 1}), undefined);
	t.is(endOfState('a', {state: 3, reason: 11}), undefined);
});
