import test from 'ava';
import fc from 'fast-check';
import {formatCpuset, highestCpu, parseCpuset} from '../../src/libvirt/cpuset.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openUnixPipe} from '../../src/libvirt/transport/unix-pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';

const never = new AbortController().signal;

test('numbers, ranges and exclusions make a set, in order', t => {
	for (const [text, cpus] of [
		['3', [3]],
		['0-3', [0, 1, 2, 3]],
		['0-3,^2', [0, 1, 3]],
		[' 1 , 0 ', [0, 1]],
		['^1,1', [1]],
		['1,1', [1]],
		['5-5', [5]],
		['16382-16383', [16_382, 16_383]],
	] as const) {
		t.deepEqual(
			[...(parseCpuset(text) ?? [])].sort((a, b) => a - b),
			[...cpus],
			text,
		);
	}

	for (const text of [
		'',
		',',
		'1,',
		',1',
		'1,,2',
		'3-1',
		'-1',
		'1-',
		'^',
		'^1',
		'1,^1',
		'0-7,^1-2',
		'a',
		'1 2',
		'0x1',
		'16384',
		'0-16384',
		'1-2-3',
		'!1',
		'99999999999',
	]) {
		t.is(parseCpuset(text), undefined, text);
	}
});

test('a set is written as ranges, and reads back the same', t => {
	t.is(formatCpuset([8, 0, 1, 2, 4]), '0-2,4,8');
	fc.assert(
		fc.property(
			fc.uniqueArray(fc.nat(highestCpu), {minLength: 1}),
			cpus => [...(parseCpuset(formatCpuset(cpus)) ?? [])].join() === [...cpus].sort((a, b) => a - b).join(),
		),
	);
});

test('libvirt accepts and refuses the same CPU sets, except for a trailing comma', async t => {
	await using libvirtd = await startTestLibvirtd();
	await using session = new LibvirtSession({
		openPipe: openUnixPipe(
			{...parseLibvirtUri(`test:///default?socket=${libvirtd.socketPath}`), transport: 'unix'},
			{},
		),
		uri: 'test:///default',
	});
	const understood = async (cpuset: string): Promise<string | undefined> => {
		const xml = `<domain type='test'><name>vm</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193e</uuid><memory>1024</memory><vcpu cpuset='${cpuset}'>1</vcpu><os><type>hvm</type></os></domain>`;
		try {
			const {dom} = await session.call(procedures.domainDefineXmlFlags, {xml, flags: 0}, never);
			return /cpuset='([^']*)'/.exec(
				(await session.call(procedures.domainGetXmlDesc, {dom, flags: 0}, never)).xml,
			)?.[1];
		} catch {
			return undefined;
		}
	};
	const part = fc.oneof(
		fc.nat(12).map(String),
		fc.tuple(fc.nat(12), fc.nat(12)).map(([a, b]) => `${a}-${b}`),
		fc.nat(12).map(cpu => `^${cpu}`),
		fc.constantFrom('16383', '16384', '14-16383', ' 4', '2-', '^1-2', 'x'),
	);
	await fc.assert(
		fc.asyncProperty(fc.array(part, {minLength: 1, maxLength: 4}), async parts => {
			const text = parts.join(',');
			const ours = parseCpuset(text);
			t.is(ours && formatCpuset(ours), await understood(text), text);
		}),
		{numRuns: 400},
	);
});
