import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {chosenImage} from '../../src/podvm/image-choice.ts';

const configured = 'podvm-base.qcow2';

test('an image is selected by a volume name: no path, no empty name, no disk of a pod VM of any adaptor', t => {
	t.is(chosenImage(undefined, {configured}), configured);
	t.is(chosenImage('my image (2).raw', {configured}), 'my image (2).raw');
	for (const image of [
		'',
		'/etc/passwd',
		'../x',
		'..',
		'.',
		'a/b',
		'a\nb',
		' a',
		'x'.repeat(256),
		'podvm-web-01234567-root.qcow2',
		'podvm-web-01234567-cidata.iso',
		'podvm-web-01234567-cloudinit.iso',
	]) {
		for (const choose of [
			() => chosenImage(image, {configured}),
			() => chosenImage(image, {configured, allowed: ['*']}),
			() => chosenImage(undefined, {configured: image}),
		]) {
			const error = t.throws(choose, {instanceOf: AdaptorError}, image);
			t.is(error.code, 'invalid-argument');
		}
	}
});

test('with a list of allowed images, only these and the configured image may be chosen', t => {
	const policy = {configured, allowed: ['se-*.qcow2', 'other.raw']};
	for (const image of ['se-1.qcow2', 'se-.qcow2', 'other.raw', configured]) {
		t.is(chosenImage(image, policy), image);
	}

	t.is(chosenImage(undefined, policy), configured);
	for (const image of ['se-1.qcow2.bak', 'my-se-1.qcow2', 'otherxraw', 'Other.raw', 'podvm-base.qcow3']) {
		const error = t.throws(() => chosenImage(image, policy), {instanceOf: AdaptorError}, image);
		t.is(error.code, 'permission-denied');
		t.regex(error.message, /LIBVIRT_ALLOWED_IMAGES/);
	}
});
