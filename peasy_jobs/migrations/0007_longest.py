from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("peasy_jobs", "0006_listed"),
    ]

    operations = [
        migrations.AddField(
            model_name="peasyminute",
            name="run_max",
            field=models.FloatField(null=True),
        ),
        migrations.AddField(
            model_name="peasyminute",
            name="waited_max",
            field=models.FloatField(null=True),
        ),
    ]
