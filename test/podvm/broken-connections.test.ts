// The connection breaks at each call in turn of a start and of a deletion: each ends in a true state. libvirt-host.ts
// says what is real here.
import {randomBytes} from 'node:crypto';
import test from 'ava';
import {LibvirtConnectionError} from '../../src/libvirt/wire/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import type {PodVms} from '../../src/sandbox/ports.ts';
import {specOf} from '../contract/pod-vms.ts';
import {BreakingWay, type Break} from './breaking-way.ts';
import {domainsNaming, never, podVmsOn, startLibvirtHost, type LibvirtHost} from './libvirt-host.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

interface Broken {
	readonly vms: PodVms;
	readonly way: BreakingWay;
	/** By a connection that does not break. */
	readonly restarted: PodVms;
	readonly leftovers: () => Promise<readonly string[]>;
}

/**
 * Runs the scenario with the way broken at the first call, at the second, and so on, until it does not come to break.
 */
async function atEachCall(when: Break, scenario: (broken: Broken) => Promise<void>): Promise<void> {
	for (let at = 1; ; at++) {
		await using way = new BreakingWay(at, when);
		await using calls = await host.connect(open => way.to(open));
		const [pool, cluster] = [await host.pool(), randomBytes(6).toString('hex')];
		// No look-ups of filters: a libvirtd 9.0 whose client is gone in the middle of nwfilterLookupByName may crash.
		const more = {cluster, node: 'node', netFilter: 'off'};
		await scenario({
			way,
			vms: podVmsOn(calls, pool, more),
			restarted: podVmsOn(host.calls, pool, more),
			leftovers: async () => [...(await domainsNaming(host.calls, cluster)), ...(await pool.files())],
		});
		if (way.broken === undefined) {
			return;
		}
	}
}

const looks: ReadonlySet<string | undefined> = new Set(
	Object.values(procedures)
		.filter(({idempotent}) => idempotent)
		.map(({name}) => name),
);

for (const when of ['before', 'during', 'after'] as const) {
	test(`a start with a connection that breaks ${when} a call continues after a read, or leaves nothing`, async t => {
		await atEachCall(when, async ({vms, way, leftovers, restarted}) => {
			const spec = specOf();
			way.arm();
			const failure: unknown = await vms.start(spec, never).then(
				() => undefined,
				(error: unknown) => error,
			);
			const about = `${way.broken ?? 'nothing'} broke, ${String(failure)}`;
			if (way.broken === undefined || looks.has(way.broken)) {
				t.is(failure, undefined, about);
				t.like(await restarted.list(never), [{sandboxId: spec.sandboxId, running: true}], about);
				await vms.delete(spec.sandboxId, never);
			} else {
				t.true(failure instanceof LibvirtConnectionError && failure.mayHaveBeenExecuted, about);
			}

			t.deepEqual(await leftovers(), [], about);
			t.deepEqual(await restarted.list(never), [], about);
		});
	});

	test(`a deletion whose connection breaks ${when} any of its calls leaves nothing`, async t => {
		await atEachCall(when, async ({vms, way, leftovers}) => {
			const spec = specOf();
			await vms.start(spec, never);
			way.arm();
			await vms.delete(spec.sandboxId, never);
			t.deepEqual(await leftovers(), [], way.broken);
		});
	});
}
